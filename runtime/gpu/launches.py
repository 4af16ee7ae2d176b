"""A program's launches as a table that native code goes through: what Python does in a call is to write the addresses that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from effc.compiler.ir.errors import DeviceError
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.program import Program
from effc.compiler.ir.slots import Layout
from effc.runtime.gpu.code import OWN_ALIGNMENT, KernelCode, SpecCode
from effc.runtime.gpu.driver import LAUNCH_WORDS
from effc.runtime.sizes import evaluator

#: A kernel reads vectors of this many bytes; scratch memory begins at a multiple.
ALIGNMENT = 16
_I32 = (1 << 31) - 1
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Table:
    """Launches for one set of symbols, at ``address``. ``calls``: the program's call of each. ``arena_bytes``: scratch memory included.

    ``_values``: the parameters of all launches, of which those at ``_places`` are ``_offsets`` behind what stands in ``_slots``; ``_held``:
    what lies at ``address``, and what it points to.
    """

    address: int
    calls: tuple[int, ...]
    arena_bytes: int
    _places: npt.NDArray[np.intp]
    _slots: npt.NDArray[np.intp]
    _offsets: Words
    _values: Words
    _held: tuple[Words, Words]

    def bind(self, slots: Words) -> None:
        """Have the launches read and write where ``slots`` says (`Layout`)."""
        self._values[self._places] = slots[self._slots] + self._offsets


@dataclass(frozen=True)
class _Launch:
    """Of call number ``call``; its parameters begin at word ``start``."""

    call: int
    handle: int
    code: KernelCode
    start: int


class Launches:
    """The launches of ``program``, of kernels with ``code`` that are loaded as ``handles``. ``cells``: address of an error cell a call,
    0 where nothing is checked.

    A parameter is a word: addresses of operands, of scratch memory and of the error cell, symbols, and zeros for triton's own.
    """

    def __init__(
        self, program: Program, code: Sequence[SpecCode], handles: Sequence[Sequence[int]], layout: Layout, cells: int
    ) -> None:
        self._program = program
        self._launches: list[_Launch] = []
        self._pointers: list[tuple[int, int]] = []  # a word, and the slot that its address is counted from
        self._cells: list[tuple[int, int]] = []  # a word, and its value
        self._own: list[tuple[int, int]] = []  # a word, and bytes of each program, for each launch
        self._symbols: list[int] = []  # words
        self._limited: list[int] = []  # the call of each number that must fit 32 bits
        offsets: list[Expr] = []
        symbols: list[Expr] = []
        grids: list[Expr] = []
        scratches: list[Expr] = []
        limited: list[Expr] = []
        self._words, self._arena = 0, layout.arena
        arena = -(-program.arena_bytes // ALIGNMENT) * ALIGNMENT
        for number, call in enumerate(program.calls):
            spec, compiled = program.kernels[call.kernel], code[call.kernel]
            mine = dict(zip(spec.symbols, call.symbols, strict=True))
            scratches.append(4 * compiled.scratch.substitute(mine))
            grid = (one.grid for one in compiled.launches)
            fitting = [*call.symbols, *(n.substitute(mine) for n in (*compiled.numbers, *grid))]
            limited += fitting
            self._limited += [number] * len(fitting)
            for handle, one in zip(handles[call.kernel], compiled.launches, strict=True):
                word = self._words
                self._launches.append(_Launch(number, handle, one, word))
                for pointer in call.pointers:
                    self._pointers.append((word, layout.base(pointer.base, pointer.index)))
                    offsets.append(pointer.offset)
                    word += 1
                self._pointers.append((word, layout.arena))
                offsets.append(arena)
                self._cells.append((word + 1, cells + 4 * number if cells else 0))
                self._symbols += range(word + 2, word + 2 + len(call.symbols))
                symbols += call.symbols
                self._own.append((word + 2 + len(call.symbols), one.own))
                grids.append(one.grid.substitute(mine))
                self._words += one.parameters
        self._counts = [len(offsets), len(symbols), len(grids), len(scratches), len(limited)]
        self._evaluate = evaluator([*offsets, *symbols, *grids, *scratches, *limited, arena], program.symbols)

    def table(self, symbols: tuple[int, ...]) -> Table:
        """DeviceError: a size that a kernel takes is beyond 32 bits."""
        flat = iter(self._evaluate(*symbols))
        offsets, numbers, grids, scratches, limited = (list(islice(flat, count)) for count in self._counts)
        (arena,) = flat
        self._check(limited)
        start = -(-(arena + max(scratches, default=0)) // OWN_ALIGNMENT) * OWN_ALIGNMENT
        own = [(word, each * grid) for (word, each), grid in zip(self._own, grids, strict=True) if each * grid > 0]
        pointing = [*self._pointers, *((word, self._arena) for word, _ in own)]
        offsets += [start] * len(own)
        values = np.zeros(self._words, np.uint64)
        values[self._symbols] = np.array(numbers, np.int64).astype(np.uint32)
        for word, value in self._cells:
            values[word] = value
        pointers = values.ctypes.data + 8 * np.arange(self._words, dtype=np.uint64)
        live = [(one, grid) for one, grid in zip(self._launches, grids, strict=True) if grid > 0]
        entries = np.zeros((len(live), LAUNCH_WORDS), np.uint64)
        for entry, (one, grid) in zip(entries, live, strict=True):
            entry[:] = one.handle, grid, one.code.threads, one.code.shared, pointers.ctypes.data + 8 * one.start
        return Table(
            address=int(entries.ctypes.data),
            calls=tuple(one.call for one, _ in live),
            arena_bytes=start + max(size for _, size in own) if own else arena + max(scratches, default=0),
            _places=np.array([word for word, _ in pointing], np.intp),
            _slots=np.array([slot for _, slot in pointing], np.intp),
            _offsets=np.array(offsets, np.int64).astype(np.uint64),
            _values=values,
            _held=(entries, pointers),
        )

    def _check(self, limited: Sequence[int]) -> None:
        for number, size in zip(self._limited, limited, strict=True):
            if not -_I32 <= size <= _I32:
                call = self._program.calls[number]
                raise DeviceError(
                    f"a size of {call.name} at {call.location} is beyond 2**31: {size}; a GPU's kernels count by 32 bits: with the "
                    "option target='cpu' ATen runs what is on GPUs"
                )
