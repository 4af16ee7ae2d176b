"""A program's launches as a table that native code goes through: what Python does in a call is to write the addresses that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from effc.compiler.ir.errors import DeviceError
from effc.compiler.ir.expr import Expr, const
from effc.compiler.ir.program import Program
from effc.compiler.ir.slots import Layout
from effc.runtime.gpu.code import KernelCode, SpecCode
from effc.runtime.gpu.driver import LAUNCH_WORDS
from effc.runtime.sizes import evaluator

#: A kernel reads vectors of this many bytes; scratch memory begins at a multiple.
ALIGNMENT = 16
_I32 = (1 << 31) - 1
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Table:
    """Launches for one set of symbols, at ``address``. ``calls``: the program's call of each. ``arena_bytes``: scratch memory included."""

    address: int
    calls: tuple[int, ...]
    arena_bytes: int
    _entries: Words
    _pointers: Words
    _values: Words
    _places: npt.NDArray[np.intp]
    _slots: npt.NDArray[np.intp]
    _offsets: Words

    def bind(self, slots: Words) -> None:
        """Have the launches read and write where ``slots`` says (`Layout`)."""
        self._values[self._places] = slots[self._slots] + self._offsets


class Launches:
    """The launches of ``program``, of kernels with ``code`` that are loaded as ``handles``. ``cells``: address of an error cell a call,
    0 where nothing is checked.
    """

    def __init__(
        self, program: Program, code: Sequence[SpecCode], handles: Sequence[Sequence[int]], layout: Layout, cells: int
    ) -> None:
        self._program = program
        self._made: list[tuple[int, int, KernelCode]] = []  # call, handle, code
        self._places: list[int] = []  # of words that hold addresses, with the slot that each is counted from
        self._slots: list[int] = []
        self._cells: list[tuple[int, int]] = []  # word, value
        self._symbols: list[int] = []  # of words that hold symbols
        offsets: list[Expr] = []
        symbols: list[Expr] = []
        grids: list[Expr] = []
        scratches: list[Expr] = [const(0)]
        self._starts: list[int] = []
        end = 0
        arena = -(-program.arena_bytes // ALIGNMENT) * ALIGNMENT
        for number, call in enumerate(program.calls):
            spec, compiled = program.kernels[call.kernel], code[call.kernel]
            mine = dict(zip(spec.symbols, call.symbols, strict=True))
            scratches.append(4 * compiled.scratch.substitute(mine))
            for handle, one in zip(handles[call.kernel], compiled.launches, strict=True):
                self._made.append((number, handle, one))
                self._starts.append(end)
                count = len(call.pointers)
                self._places += range(end, end + count + 1)
                self._slots += [*(layout.base(p.base, p.index) for p in call.pointers), layout.arena]
                offsets += [*(p.offset for p in call.pointers), arena]
                self._cells.append((end + count + 1, cells + 4 * number if cells else 0))
                self._symbols += range(end + count + 2, end + count + 2 + len(call.symbols))
                symbols += call.symbols
                grids.append(one.grid.substitute(mine))
                end += one.parameters
        self._words = end
        self._counts = len(offsets), len(symbols), len(grids)
        self._evaluate = evaluator([*offsets, *symbols, *grids, *scratches, arena], program.symbols)

    def table(self, symbols: tuple[int, ...]) -> Table:
        """DeviceError: a size that a kernel takes is beyond 32 bits."""
        flat = self._evaluate(*symbols)
        ends = np.cumsum(self._counts)
        offsets, numbers, grids = flat[: ends[0]], flat[ends[0] : ends[1]], flat[ends[1] : ends[2]]
        *scratches, arena = flat[ends[2] :]
        self._check(numbers)
        values = np.zeros(self._words, np.uint64)
        values[self._symbols] = np.array(numbers, np.int64).astype(np.uint32)
        for place, value in self._cells:
            values[place] = value
        pointers = values.ctypes.data + 8 * np.arange(self._words, dtype=np.uint64)
        live = [i for i, grid in enumerate(grids) if grid > 0]
        entries = np.zeros((len(live), LAUNCH_WORDS), np.uint64)
        for entry, i in zip(entries, live, strict=True):
            _, handle, one = self._made[i]
            entry[:] = handle, grids[i], one.threads, one.shared, pointers.ctypes.data + 8 * self._starts[i]
        return Table(
            int(entries.ctypes.data),
            tuple(self._made[i][0] for i in live),
            arena + max(scratches),
            entries,
            pointers,
            values,
            np.array(self._places, np.intp),
            np.array(self._slots, np.intp),
            np.array(offsets, np.int64).astype(np.uint64),
        )

    def _check(self, numbers: Sequence[int]) -> None:
        values = iter(numbers)
        for number, _, _ in self._made:
            call = self._program.calls[number]
            mine = [next(values) for _ in call.symbols]
            if any(not -_I32 <= n <= _I32 for n in mine):
                raise DeviceError(f"a size of {call.name} at {call.location} is beyond 2**31: {mine}")
