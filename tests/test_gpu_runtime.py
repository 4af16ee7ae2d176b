"""The launcher: what it hands to the CUDA driver, of which a stub keeps the arguments, and what it makes of the driver's answers."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gpu_programs import InterpretingGpu, built_on, compiled_for_gpu, graph_of, host, watched
from stub_cuda import StubCuda, StubGpu
from torch import nn

from effc.compiler.gpu.build import kernels_of
from effc.compiler.ir.errors import DeviceError, LoweringError
from effc.compiler.ir.expr import const
from effc.compiler.ir.program import Program
from effc.compiler.pipeline.lower import lower
from effc.runtime.gpu.device import CudaDevice
from effc.runtime.gpu.driver import CudaDriver, Refusal, cuda_driver
from effc.runtime.gpu.executable import GpuExecutable


def test_native_code_hands_over_every_parameter_of_every_launch() -> None:
    cuda = StubCuda(parameters=3)
    gpu = StubGpu(cuda)
    kernel = gpu.load(b"image", "k", 1 << 10)
    assert (cuda.images, cuda.names, cuda.attributes) == ([b"image"], ["k"], [])
    values = (ctypes.c_uint64 * 6)(0x7F0000001000, 5, 0, 1, 2, 3)
    start = ctypes.addressof(values)
    pointers = (ctypes.c_void_p * 6)(*(start + 8 * i for i in range(6)))
    first = ctypes.addressof(pointers)
    table = (ctypes.c_uint64 * 10)(kernel, 12, 128, 1 << 10, first, kernel, 7, 64, 0, first + 24)
    assert gpu.launch(ctypes.addressof(table), 2) is None
    common = {"function": 0x21, "stream": 0xABC}
    assert cuda.launches == [
        {**common, "grid": 12, "threads": 128, "shared": 1024, "values": [0x7F0000001000, 5, 0]},
        {**common, "grid": 7, "threads": 64, "shared": 0, "values": [1, 2, 3]},
    ]
    assert gpu.launch(ctypes.addressof(table), 0) is None
    cuda.answer = 701
    refusal = gpu.launch(ctypes.addressof(table), 2)
    assert refusal == Refusal(0, "invalid argument (CUDA error 701)")
    assert len(cuda.launches) == 3, "after a refusal nothing is launched"


@pytest.fixture
def _torchs_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of a device, and its current stream, of which a build without CUDA has nothing."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=84, name="A10")
    )
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0x1000 + index, raising=False)


@pytest.mark.usefixtures("_torchs_names")
def test_a_cuda_device_is_asked_for_by_torchs_names() -> None:
    cuda = StubCuda()
    gpu = CudaDevice(torch.device("cpu", 0), CudaDriver(cuda), host().launch)
    assert (gpu.capability, gpu.processors) == (86, 84)
    parameters = (ctypes.c_uint64 * 1)(0)
    table = (ctypes.c_uint64 * 5)(gpu.load(b"image", "k", 0), 1, 32, 0, ctypes.addressof(parameters))
    assert gpu.launch(ctypes.addressof(table), 1) is None
    assert cuda.launches[0]["stream"] == 0x1000
    assert gpu.empty((2, 3), (1, 2), torch.float16).stride() == (1, 2)


@pytest.mark.usefixtures("_torchs_names")
def test_a_thread_that_has_no_context_gets_torchs() -> None:
    """As autograd's, which the runtime has given none when the first kernel of a backward graph is launched; another is kept."""
    cuda = StubCuda()
    gpu = CudaDevice(torch.device("cpu", 0), CudaDriver(cuda), host().launch)
    found: list[int | None] = []

    def launch(given: int | None) -> None:
        cuda.contexts.current = given
        for _ in range(2):
            gpu.launch(0, 0)
        found.append(cuda.contexts.current)

    for given in (None, 0x7, None):
        thread = threading.Thread(target=launch, args=(given,))
        thread.start()
        thread.join()
    assert found == [0x140, 0x7, 0x140]


def test_more_shared_memory_than_usual_is_asked_for() -> None:
    """And as much of a processor's for it as there can be, so that it holds several blocks."""
    cuda = StubCuda()
    CudaDriver(cuda).load(b"image", "k", 100 << 10)
    assert cuda.attributes == [(8, 100 << 10), (9, 100)]


def test_where_the_share_of_shared_memory_is_refused_the_kernel_is_loaded_all_the_same() -> None:
    """It is a hint; the size is none."""
    assert CudaDriver(StubCuda(refused=frozenset({9}))).load(b"image", "k", 100 << 10)
    with pytest.raises(DeviceError, match="does not give the kernel k 102400 bytes"):
        CudaDriver(StubCuda(refused=frozenset({8}))).load(b"image", "k", 100 << 10)


def test_the_code_of_a_kernel_that_is_refused_is_given_back() -> None:
    cuda = StubCuda(refused=frozenset({"k"}))
    driver = CudaDriver(cuda)
    for _ in range(2):
        with pytest.raises(DeviceError, match="does not find the kernel k in its cubin"):
            driver.load(b"image", "k", 0)
    assert cuda.unloaded == [0x11, 0x12]


def test_kernels_that_were_loaded_before_one_that_is_refused_are_retired() -> None:
    text = graph_of(nn.Sequential(nn.Softmax(-1), nn.Linear(7, 5)), torch.randn(5, 7))
    built = built_on(StubGpu(StubCuda()), text).executable
    names = [one.name for each in built.code for one in each.launches]
    assert len(names) > 1
    gpu = StubGpu(StubCuda(refused=frozenset(names[-1:])))
    with pytest.raises(DeviceError, match="does not find the kernel"):
        GpuExecutable(built.program, built.code, gpu, host().unchanged)
    gc.collect()
    assert gpu.retired == [0x21 + i for i in range(len(names) - 1)]


def test_a_kernel_is_on_the_gpu_once_it_is_loaded() -> None:
    """The driver may put that off until a kernel's first use, which must not be the launch in a capture."""
    cuda = StubCuda()
    assert cuda.used == [CudaDriver(cuda).load(b"image", "k", 0)]


def test_the_drivers_refusal_is_an_error_with_its_words() -> None:
    with pytest.raises(DeviceError, match=r"does not load the kernel k: invalid argument \(CUDA error 1\)"):
        CudaDriver(StubCuda(answer=1)).load(b"image", "k", 0)


def test_without_a_driver_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFC_LIBCUDA", "no_such_library.so")
    cuda_driver.cache_clear()
    with pytest.raises(DeviceError, match=r"no_such_library\.so cannot be loaded"):
        cuda_driver()


def test_arguments_are_operands_scratch_memory_error_cell_and_symbols() -> None:
    text = graph_of(nn.Softmax(-1), torch.randn(5, 7), dynamic=True)
    cuda = StubCuda(parameters=6)
    executable = built_on(StubGpu(cuda), text).executable
    for rows in (6, 3):
        x = torch.randn(rows, 8)
        (y,) = executable([rows, 8], [x])
        launch = cuda.launches[-1]
        values, threads = launch["values"], launch["threads"]
        assert values[:2] == [x.data_ptr(), y.data_ptr()]
        assert values[3:] == [0, rows, 8], "softmax checks nothing"
        assert (launch["stream"], threads % 32) == (0xABC, 0)


@pytest.mark.parametrize("arena", [0, 100])
def test_memory_of_tritons_own_lies_behind_the_arena(arena: int) -> None:
    """As much for each program as the kernel asks for, at its first parameter behind the symbols; each launch has the same."""
    cuda = StubCuda(parameters=8)
    gpu = StubGpu(cuda)
    built = built_on(gpu, graph_of(nn.Softmax(-1), torch.randn(5, 7), dynamic=True)).executable
    (one,) = built.code[0].launches
    code = replace(built.code[0], launches=(replace(one, own=256, parameters=8),) * 2, scratch=const(3))
    program = replace(built.program, arena_bytes=const(arena))
    executable, asked = GpuExecutable(program, [code], gpu, built.unchanged), list[torch.Tensor]()

    def empty(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        asked.append(StubGpu.empty(gpu, size, stride, dtype))
        return asked[-1]

    gpu.empty = empty  # type: ignore[method-assign]
    executable([600, 8], [torch.randn(600, 8)])
    memory = asked[-1]
    first, second = cuda.launches
    own = first["values"][6]
    assert own == second["values"][6]
    assert (own - memory.data_ptr()) % 128 == 0
    assert own >= memory.data_ptr() + arena + 12
    assert first["grid"] > 1
    assert own + 256 * first["grid"] <= memory.data_ptr() + memory.numel()
    assert first["values"][7] == 0


def test_kernels_of_a_program_that_is_gone_are_retired_unless_a_graph_may_launch_them() -> None:
    text = graph_of(nn.Softmax(-1), torch.randn(5, 7), dynamic=True)
    for captures in (False, True):
        gpu = StubGpu(StubCuda(parameters=6))
        executable = built_on(gpu, text).executable
        gpu.capturing = captures
        executable([6, 8], [torch.randn(6, 8)])
        del executable
        gc.collect()
        assert gpu.retired == ([] if captures else [0x21])


@pytest.mark.usefixtures("_torchs_names")
def test_retired_kernels_are_unloaded_when_others_are_loaded_and_all_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, waits = StubCuda(), list[str]()
    gpu = CudaDevice(torch.device("cpu", 0), CudaDriver(cuda), host().launch)
    monkeypatch.setattr(gpu, "wait", lambda: waits.append("wait"))
    monkeypatch.setattr(gpu, "is_capturing", lambda: True)
    first, second = gpu.load(b"a", "a", 0), gpu.load(b"b", "b", 0)
    gpu.retire([first])
    gpu.load(b"c", "c", 0)
    assert (cuda.unloaded, waits) == ([], []), "nobody waits in a capture"
    monkeypatch.setattr(gpu, "is_capturing", lambda: False)
    gpu.load(b"d", "d", 0)
    gpu.load(b"e", "e", 0)
    assert (cuda.unloaded, waits) == ([0x11], ["wait"])
    gpu.retire([second])
    gpu.load(b"f", "f", 0)
    assert cuda.unloaded == [0x11, 0x12]


@pytest.mark.usefixtures("_torchs_names")
def test_where_nobody_may_wait_kernels_stay_until_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while another thread captures a graph."""
    cuda, refused = StubCuda(), [True]
    gpu = CudaDevice(torch.device("cpu", 0), CudaDriver(cuda), host().launch)

    def wait() -> None:
        if refused[0]:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu, "wait", wait)
    monkeypatch.setattr(gpu, "is_capturing", lambda: False)
    gpu.retire([gpu.load(b"a", "a", 0)])
    gpu.load(b"b", "b", 0)
    assert cuda.unloaded == []
    refused[0] = False
    gpu.load(b"c", "c", 0)
    assert cuda.unloaded == [0x11]


@pytest.mark.usefixtures("_torchs_names")
def test_threads_that_unload_at_the_same_time_unload_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = StubCuda()
    gpu = CudaDevice(torch.device("cpu", 0), CudaDriver(cuda), host().launch)
    monkeypatch.setattr(gpu, "is_capturing", lambda: False)
    first = gpu.load(b"a", "a", 0)
    others: list[threading.Thread] = []

    def wait() -> None:
        if not others:
            others.append(threading.Thread(target=gpu.load, args=(b"c", "c", 0)))
            others[0].start()
            others[0].join()

    monkeypatch.setattr(gpu, "wait", wait)
    gpu.retire([first])
    gpu.load(b"b", "b", 0)
    assert (len(others), cuda.unloaded) == (1, [0x11])


@pytest.mark.usefixtures("_torchs_names")
def test_calls_are_timed_in_turn_without_the_first_round_and_what_empties_l2(monkeypatch: pytest.MonkeyPatch) -> None:
    """By events right before and behind each, here of a clock that only calls and the filling of memory advance."""
    now, turns = [0.0], list[str]()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = now[0]

        def elapsed_time(self, end: Event) -> float:
            assert waited, "nobody asks before all has ended"
            return end.at - self.at

    def taking(name: str, milliseconds: list[float]) -> Callable[[], None]:
        def call() -> None:
            now[0] += milliseconds[turns.count(name)]
            turns.append(name)

        return call

    class Memory:
        def zero_(self) -> None:
            now[0] += 1000.0
            turns.append("flush")

    gpu, waited = CudaDevice(torch.device("cpu", 0), CudaDriver(StubCuda()), host().launch), list[None]()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(gpu, "wait", lambda: waited.append(None))
    monkeypatch.setattr(gpu, "current", nullcontext)
    monkeypatch.setattr(gpu, "empty", lambda *given: Memory())
    cold, noisy = [900.0, *[2.0] * 9], [900.0, 3.0, 3.0, 50.0, 3.0, 3.0, 3.0, 3.0, 1.0, 3.0]
    assert gpu.elapsed([taking("a", cold), taking("b", noisy)]) == pytest.approx([2e-3, 3e-3])
    assert turns == ["flush", "a", "flush", "b"] * 10


def test_a_refused_launch_names_the_kernel() -> None:
    cuda = StubCuda(parameters=6)
    executable = built_on(StubGpu(cuda), graph_of(nn.Softmax(-1), torch.randn(5, 7), dynamic=True)).executable
    cuda.answer = 2
    with pytest.raises(
        DeviceError, match=r"does not launch \S+ at module \(Softmax\): invalid argument \(CUDA error 2\)$"
    ):
        executable([6, 8], [torch.randn(6, 8)])
    cuda.answer = 700
    with pytest.raises(DeviceError, match=r"\(CUDA error 700\); a kernel launched before did it"):
        executable([6, 8], [torch.randn(6, 8)])


def test_a_kernel_that_the_device_does_not_load_goes_to_aten() -> None:
    with pytest.raises(LoweringError, match="does not load the kernel"):
        built_on(StubGpu(StubCuda(answer=209)), graph_of(nn.Softmax(-1), torch.randn(5, 7)))


def test_out_of_memory_is_torchs_error_with_what_effc_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = StubGpu(StubCuda(parameters=6))
    executable = built_on(gpu, graph_of(nn.Softmax(-1), torch.randn(5, 7), dynamic=True)).executable

    def full(*arguments: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu, "empty", full)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        executable([6, 8], [torch.randn(6, 8)])
    assert any("a smaller batch needs less" in note for note in caught.value.__notes__)


def test_sizes_beyond_32_bits_are_refused() -> None:
    text = graph_of(nn.Softmax(-1), torch.randn(5, 7), dynamic=True)
    executable = built_on(StubGpu(StubCuda(parameters=6)), text).executable
    with pytest.raises(DeviceError, match=r"beyond 2\*\*31.*target='cpu'"):
        executable([1 << 32, 8], [torch.empty(0)])


@pytest.mark.parametrize(
    ("model", "shape"),
    [(nn.Softmax(-1), (2, 3, 7)), (nn.GELU(), (2, 3, 7)), (nn.Linear(7, 5), (2, 3, 7))],
    ids=["reduction", "pointwise", "contraction"],
)
def test_points_beyond_32_bits_are_refused(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Where each size fits, but not all rows of a tensor whose sizes are known at a call only: their numbers would wrap."""
    cuda = StubCuda(parameters=8)
    executable = built_on(StubGpu(cuda), graph_of(model, torch.randn(shape), dynamic=True)).executable
    count = len(executable.program.symbols)
    with pytest.raises(DeviceError, match=r"beyond 2\*\*31"):
        executable([1 << 16] * count, [torch.empty(0)] * len(executable.program.inputs))
    assert not cuda.launches
    executable._launches.table((1 << 8,) * count)


def test_empty_tensors_launch_nothing() -> None:
    cuda = StubCuda(parameters=6)
    executable = built_on(StubGpu(cuda), graph_of(nn.Softmax(-1), torch.randn(5, 7), dynamic=True)).executable
    (y,) = executable([0, 8], [torch.randn(0, 8)])
    assert y.shape == (0, 8)
    assert cuda.launches == []


class Halves(nn.Module):
    """Two chains, the second of which writes its part of the result at an address that is no multiple of 16 bytes."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.exp(), y.sin()])


def test_kernels_on_odd_offsets_are_compiled_for_them() -> None:
    program: Program = lower(graph_of(Halves(), torch.randn(7), torch.randn(9)), {"target": "sm_90"})
    assert sorted(aligned for _, aligned in kernels_of(program)) == [False, True]
    gpu = InterpretingGpu()
    compiled = compiled_for_gpu(Halves(), gpu)
    x, y = torch.randn(7), torch.randn(9)
    with torch.no_grad(), watched(gpu):
        torch.testing.assert_close(compiled(x, y), Halves()(x, y))
