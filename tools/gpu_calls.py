"""What the host does in a call of a GPU program, without a GPU: microseconds, with a driver that launches nothing.

    PYTHONPATH=tests python -P tools/gpu_calls.py

Memory is the CPU's, given out again to the next call, as torch's caching allocator does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from gpu_programs import TextTools, Untimed, host
from test_gpu_models import Block, Residual, made
from torch import nn

from effc.compiler.build import Built
from effc.compiler.capture.backend import compile_with
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.gpu.build import build_gpu
from effc.compiler.ir.options import Options
from effc.compiler.toolchain import Toolchain
from effc.runtime import elf
from effc.runtime.gpu.driver import Refusal
from effc.runtime.gpu.executable import GpuExecutable

_NOTHING = """module { llvm.func @nothing(%a: i64) -> i32 {
  %zero = llvm.mlir.constant(0 : i32) : i32
  llvm.return %zero : i32
} }"""
_CALLS, _ROUNDS = 200, 9


class Idle(Untimed):
    """A device whose launches do nothing."""

    def __init__(self) -> None:
        self.name, self.model = torch.device("cuda:0"), "a device whose launches do nothing"
        self.capability, self.processors = 90, 132
        self._given: dict[Any, torch.Tensor] = {}
        self._code = elf.load(compile_object(_NOTHING, Target.host()))

    def current(self) -> AbstractContextManager[object]:
        return nullcontext()

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        key = (size, stride, dtype)
        if key not in self._given:
            self._given[key] = torch.empty_strided(size, stride, dtype=dtype)
        return self._given[key]

    def host_cells(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32)

    def load(self, image: bytes, name: str, shared: int) -> int:
        return 1

    def launch(self, table: int, count: int) -> Refusal | None:
        assert not host().launch(table, count, self._code.symbols["nothing"], 0)
        return None

    def wait(self) -> None:
        pass


def measured(name: str, model: nn.Module, *inputs: torch.Tensor) -> str:
    """A line of the table."""
    found: list[tuple[GpuExecutable, Any]] = []
    gpu = Idle()

    def make(text: str) -> Built:
        tools = cast(Toolchain, TextTools())
        built = build_gpu(text, options={}, cache=None, device=gpu, host=host(), tools=tools)
        call = built.executable.__call__

        def seen(symbols: Any, tensors: Any, **given: Any) -> Any:
            found[:] = [(built.executable, (symbols, tensors))]
            return call(symbols, tensors, **given)

        executable = cast(Any, _Seen(built.executable, seen))
        return Built(executable, built.artifact, built.report)

    compiled = torch.compile(model, backend=lambda gm, given: compile_with(gm, given, Options(), lambda _: make))
    with torch.no_grad():
        compiled(*inputs)
        ((executable, (symbols, tensors)),) = found
        rounds = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            for _ in range(_CALLS):
                executable(symbols, tensors)
            rounds.append((time.perf_counter() - start) / _CALLS)
    launches = len(executable._tables[tuple(symbols)].calls)
    return f"| {name} | {len(tensors)} | {launches} | {1e6 * statistics.median(rounds):.1f} |"


class _Seen:
    """``executable`` whose calls go to ``call``."""

    def __init__(self, executable: GpuExecutable, call: Any) -> None:
        self._executable, self._call = executable, call

    def __call__(self, symbols: Any, tensors: Any, **given: Any) -> Any:
        return self._call(symbols, tensors, **given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executable, name)


def main() -> None:
    """Print the table."""
    print("| program | tensors | launches | µs a call |\n|---|---|---|---|")
    torch.set_num_threads(1)
    print(measured("one linear", made(lambda: nn.Linear(16, 8)), torch.randn(4, 16)), flush=True)
    print(measured("a residual block", made(Residual), torch.randn(1, 16, 6, 6)), flush=True)
    blocks = made(lambda: nn.Sequential(Block(), Block()))
    print(measured("two transformer blocks", blocks, torch.randn(1, 7, 64)), flush=True)


if __name__ == "__main__":
    main()
