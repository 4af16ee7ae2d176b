"""``GpuExecutable``: a program with its cubins, callable on tensors of one device.

A call launches kernels on torch's current stream and waits for nothing, so it can be captured into a CUDA graph; the arena and the
results come from torch's caching allocator. A program with a bounds check reads its error cell at the end, and so waits.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.autograd.graph import increment_version

from effc.compiler.ir.errors import DeviceError
from effc.compiler.ir.program import Program
from effc.runtime.conform import conforming
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.gpu.code import KernelCode, SpecCode
from effc.runtime.gpu.driver import Driver, Parameters
from effc.runtime.guard import Unchanged
from effc.runtime.sizes import SizeTable
from effc.runtime.stepwise import raise_failed_check
from effc.runtime.weights import Weights

#: Kernels read vectors of this many bytes.
ALIGNMENT = 16
_I32 = (1 << 31) - 1


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    """A copy at an aligned address, of the same strides."""
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
    return tensor.detach().as_strided((span,), (1,)).clone().as_strided(tensor.shape, tensor.stride(), 0)


@dataclass
class _Launch:
    """A launch for one set of symbols, of call number ``call``. ``pointers``: base and index, and bytes from there, of each operand."""

    call: int
    kernel: int
    code: KernelCode
    grid: int
    pointers: list[tuple[str, int, int]]
    symbols: list[int]
    parameters: Parameters


@dataclass
class _Schedule:
    """All launches for one set of symbols; scratch memory starts at byte ``scratch`` of the arena, of ``size`` bytes."""

    launches: list[_Launch]
    scratch: int
    size: int


class GpuExecutable:
    """Runs ``program`` on ``device``; ``code`` is that of its kernels, in order. ``prepare``: the executable of ``program.prepare``.

    Calls may come from any threads; each launches all of its kernels before the next one does.
    """

    def __init__(
        self,
        program: Program,
        code: Sequence[SpecCode],
        driver: Driver,
        device: torch.device,
        unchanged: Unchanged,
        prepare: GpuExecutable | None = None,
    ) -> None:
        self.program, self.code, self.device, self.unchanged = program, code, device, unchanged
        self._driver = driver
        self._error = torch.zeros(1, dtype=torch.int32, device=device)  # first: torch then makes the device's context
        with driver.current(device):
            self._kernels = [[driver.load(c.image, c.name, c.shared) for c in spec.launches] for spec in code]
        self._lock = threading.Lock()
        self._sizes = SizeTable(program)
        self.weights = Weights(program, prepare, unchanged) if program.derived else None
        self._mutated = sorted({o.mutates for o in program.outputs if o.mutates is not None})
        self._dtypes = [TORCH_DTYPES[o.tensor.dtype] for o in program.outputs if o.mutates is None]
        self._checks = any(i.op == "check" for spec in program.kernels for i in spec.body)
        self._schedules: dict[tuple[int, ...], _Schedule] = {}

    @property
    def notes(self) -> list[str]:
        """For the report."""
        return [self.weights.note] if self.weights is not None and self.weights.note else []

    def __call__(
        self, symbols: Sequence[int], tensors: Sequence[torch.Tensor], *, validate: bool = False
    ) -> list[torch.Tensor]:
        """The results that are not mutations, in order; mutated inputs are updated in place. ``validate``: copy inputs of another
        placement. DeviceError: the driver refuses a launch. IndexError: a bounds check of the model failed.
        """
        key = tuple(symbols)
        if validate:
            with conforming(self._sizes.given(key), tensors, self._mutated) as placed:
                return self(symbols, placed)
        schedule = self._schedules.get(key)
        if schedule is None:
            schedule = self._schedules[key] = self._plan(key)
        derived = self.weights.current(tensors).derived if self.weights is not None else []
        aligned = [t if t.data_ptr() % ALIGNMENT == 0 else _moved(t) for t in tensors]
        results = [
            torch.empty_strided(size, stride, dtype=dtype, device=self.device)
            for dtype, (size, stride) in zip(self._dtypes, self._sizes[key].outputs, strict=True)
        ]
        arena = torch.empty(schedule.size, dtype=torch.uint8, device=self.device)
        with self._lock, self._driver.current(self.device):
            self._run(schedule, arena.data_ptr(), self._bases(aligned, derived, results, arena))
        for i in self._mutated:
            if aligned[i] is not tensors[i]:
                tensors[i].copy_(aligned[i])
        if self._mutated:
            increment_version([tensors[i] for i in self._mutated])
        return results

    def refresh(self) -> None:
        """Derive the weights anew at the next call, whatever the guard says."""
        if self.weights is not None:
            self.weights.clear()

    def trim(self) -> None:
        """Nothing is held between calls."""

    # -- a call -------------------------------------------------------------------------------------------------------
    def _bases(
        self,
        inputs: Sequence[torch.Tensor],
        derived: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        arena: torch.Tensor,
    ) -> dict[tuple[str, int], int]:
        """The address of each base that a program's pointers name."""
        found = {("arena", 0): arena.data_ptr()}
        found |= {("input", i): t.data_ptr() for i, t in enumerate(inputs)}
        found |= {("derived", i): t.data_ptr() for i, t in enumerate(derived)}
        fresh = iter(results)
        for k, output in enumerate(self.program.outputs):
            place = next(fresh) if output.mutates is None else inputs[output.mutates]
            found["output", k] = place.data_ptr()
        return found

    def _run(self, schedule: _Schedule, arena: int, bases: Mapping[tuple[str, int], int]) -> None:
        stream, error = self._driver.stream(self.device), self._error.data_ptr()
        for launch in schedule.launches:
            values = launch.parameters.values
            count = len(launch.pointers)
            for i, (base, index, offset) in enumerate(launch.pointers):
                values[i] = bases[base, index] + offset
            values[count], values[count + 1] = arena + schedule.scratch, error
            for i, symbol in enumerate(launch.symbols, count + 2):
                values[i] = symbol
            code = launch.code
            self._driver.launch(launch.kernel, launch.grid, code.threads, code.shared, stream, launch.parameters)
            if self._checks:
                self._raise_failed(launch)

    def _raise_failed(self, launch: _Launch) -> None:
        code = int(self._error.item())
        if code:
            self._error.zero_()
            raise_failed_check(self.program, ((launch.call + 1) << 32) | code)

    # -- sizes --------------------------------------------------------------------------------------------------------
    def _plan(self, symbols: tuple[int, ...]) -> _Schedule:
        values = dict(zip(self.program.symbols, symbols, strict=True))
        arena = -(-self._sizes[symbols].arena_bytes // ALIGNMENT) * ALIGNMENT
        launches: list[_Launch] = []
        scratch = 0
        for number in range(len(self.program.calls)):
            found, needed = self._call(number, values)
            launches += found
            scratch = max(scratch, needed)
        return _Schedule(launches, arena, arena + scratch)

    def _call(self, number: int, values: Mapping[str, int]) -> tuple[list[_Launch], int]:
        call = self.program.calls[number]
        spec, code = self.program.kernels[call.kernel], self.code[call.kernel]
        numbers = [e.evaluate(values) for e in call.symbols]
        mine = dict(zip(spec.symbols, numbers, strict=True))
        if any(not -_I32 <= n <= _I32 for n in numbers):
            raise DeviceError(f"a size of {call.name} at {call.location} is beyond 2**31: {numbers}")
        pointers = [(p.base, p.index, p.offset.evaluate(values)) for p in call.pointers]
        launches = []
        for kernel, one in zip(self._kernels[call.kernel], code.launches, strict=True):
            grid = one.grid.evaluate(mine)
            if grid > 0:
                launches.append(_Launch(number, kernel, one, grid, pointers, numbers, Parameters(one.parameters)))
        return launches, 4 * code.scratch.evaluate(mine)
