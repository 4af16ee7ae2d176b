"""Bounds checks on a GPU: who is told of what kernels found, and when; a stub plays the driver."""

from __future__ import annotations

import ctypes
import gc
import os
import weakref

import pytest
import torch
from gpu_programs import built_on, graph_of
from stub_cuda import StubCuda, StubGpu
from torch import nn

from effc.runtime.gpu import checks
from effc.runtime.gpu.executable import GpuExecutable


def test_error_cells_are_where_kernels_that_check_write() -> None:
    """One a call of the program; the call that reads it asks the GPU nothing, and says what failed and where."""
    cuda = StubCuda(parameters=5)
    gpu = StubGpu(cuda)
    executable = built_on(gpu, graph_of(nn.Embedding(7, 16), torch.randint(0, 7, (5,)))).executable
    table, tokens = torch.randn(7, 16), torch.randint(0, 7, (5,))
    executable([], [table, tokens])
    (launch,) = cuda.launches
    (cell,) = [v for v in launch["values"] if v == gpu.cells.data_ptr()]
    number = next(i for i, instr in enumerate(executable.program.kernels[0].body) if instr.op == "check")
    ctypes.c_int32.from_address(cell).value = number + 1  # as the kernel does
    with pytest.raises(IndexError, match="out of bounds for dimension 0 with size 7"):
        executable([], [table, tokens])
    assert len(cuda.launches) == 1
    executable([], [table, tokens])


def _failed_lookup() -> tuple[StubGpu, GpuExecutable]:
    """A program whose only check has failed."""
    gpu = StubGpu(StubCuda(parameters=5))
    executable = built_on(gpu, graph_of(nn.Embedding(7, 16), torch.randint(0, 7, (5,)))).executable
    number = next(i for i, instr in enumerate(executable.program.kernels[0].body) if instr.op == "check")
    gpu.cells[0] = number + 1
    return gpu, executable


def test_who_waits_is_told_of_the_call_itself() -> None:
    """And of another program's as of an earlier one."""
    gpu, executable = _failed_lookup()
    with pytest.raises(IndexError, match=r"with size 7 .*[^,] on cuda:0$") as caught:
        executable.raise_failed()
    assert "earlier" not in str(caught.value)
    _, other = _failed_lookup()
    with pytest.raises(IndexError, match="in an earlier call on cuda:0"):
        executable.raise_failed()
    executable.raise_failed()
    assert not gpu.cells.any()
    del other


def test_what_the_last_calls_got_wrong_is_told_at_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once they have ended; by whoever else the GPU was broken, that is not said here."""
    gpu, executable = _failed_lookup()
    failed, gpu.cells[0] = int(gpu.cells[0]), 0

    def wait() -> None:
        gpu.cells[0] = failed  # as a kernel does that still runs
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu, "wait", wait)
    with pytest.warns(
        RuntimeWarning, match="out of bounds for dimension 0 with size 7 .*, in an earlier call on cuda:0"
    ):
        checks._report()
    executable([], [torch.randn(7, 16), torch.randint(0, 7, (5,))])


def test_kernels_may_write_into_the_cells_of_a_program_that_is_gone() -> None:
    gpu, executable = _failed_lookup()
    memory = weakref.ref(gpu.cells)
    program = weakref.ref(executable)
    del gpu, executable
    gc.collect()
    assert program() is None
    assert memory() is not None
    checks.raise_failed()


def test_a_child_process_looks_at_no_cells() -> None:
    """The driver's memory may be missing there."""
    gpu, _executable = _failed_lookup()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            checks.raise_failed()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(IndexError):
        checks.raise_failed()
    assert not gpu.cells.any()
