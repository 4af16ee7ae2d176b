"""A program's sizes for one set of symbol values, evaluated once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from effc.compiler.ir.expr import Expr
from effc.compiler.ir.program import Program
from effc.compiler.ir.spec import ITEM_SIZE
from effc.runtime.pages import FRESH

_KEPT = 1024  # sets of symbol values; a decode loop meets a new one every step

Placement = tuple[tuple[int, ...], tuple[int, ...]]
Evaluate = Callable[..., tuple[int, ...]]


def evaluator(exprs: Sequence[Expr], symbols: Sequence[str]) -> Evaluate:
    """One function of the symbols' values that gives the value of every expression; some 30 times as fast as `Expr.evaluate`.

    The text form of an ``Expr`` is Python's own syntax, and a parsed one holds only integers, names, + - * // %, max and min.
    """
    unknown = {v for e in exprs for v in e.variables()} - set(symbols)
    if unknown or not all(s.isidentifier() for s in symbols):
        raise ValueError(f"sizes depend on {sorted(unknown)}, which are not among the symbols {list(symbols)}")
    source = f"lambda {', '.join(symbols)}: ({''.join(f'{e}, ' for e in exprs)})"
    function: Evaluate = eval(source, {"__builtins__": {}, "max": max, "min": min})
    return function


@dataclass(frozen=True)
class Sizes:
    """``outputs``: placement of each result that is not a mutation; ``large``: which of them, with their bytes, are best in huge pages;
    ``arena_bytes`` as the program asks.
    """

    symbols: tuple[int, ...]
    outputs: tuple[Placement, ...]
    large: tuple[tuple[int, int], ...]
    arena_bytes: int


class SizeTable:
    """`Sizes` by symbol values."""

    def __init__(self, program: Program) -> None:
        self.symbols = program.symbols
        self._outputs = [o.tensor for o in program.outputs if o.mutates is None]
        self._inputs = [i.tensor for i in program.inputs]
        exprs = [e for t in self._outputs for e in (*t.sizes, *t.strides)]
        self._evaluate = evaluator([*exprs, program.arena_bytes], program.symbols)
        self._evaluate_inputs = evaluator([e for t in self._inputs for e in (*t.sizes, *t.strides)], program.symbols)
        self._given = [i for i, given in enumerate(program.inputs) if not given.param]
        given = [program.inputs[i].tensor for i in self._given]
        self._given_ranks = [len(t.sizes) for t in given]
        self._evaluate_given = evaluator([e for t in given for e in (*t.sizes, *t.strides)], program.symbols)
        self._known: dict[tuple[int, ...], Sizes] = {}
        self._last_given: tuple[tuple[int, ...], dict[int, Placement]] | None = None

    def __getitem__(self, symbols: tuple[int, ...]) -> Sizes:
        found = self._known.get(symbols)
        if found is None:
            if len(symbols) != len(self.symbols):
                raise ValueError(f"the program takes symbols {self.symbols}, and got {symbols}")
            *flat, arena = self._evaluate(*symbols)
            outputs = placements_of(flat, [len(t.sizes) for t in self._outputs])
            found = Sizes(symbols, outputs, self._large(outputs), arena)
            while len(self._known) >= _KEPT:
                self._known.pop(next(iter(self._known)), None)
            self._known[symbols] = found
        return found

    def _large(self, outputs: Sequence[Placement]) -> tuple[tuple[int, int], ...]:
        items = (ITEM_SIZE[t.dtype] for t in self._outputs)
        spans = (item * _span(*placement) for item, placement in zip(items, outputs, strict=True))
        return tuple((k, size) for k, size in enumerate(spans) if size >= FRESH)

    def inputs(self, symbols: tuple[int, ...]) -> tuple[Placement, ...]:
        """Placement that the program expects of each input."""
        return placements_of(self._evaluate_inputs(*symbols), [len(t.sizes) for t in self._inputs])

    def given(self, symbols: tuple[int, ...]) -> dict[int, Placement]:
        """The same of those inputs, by number, that are no parameters; those of the last call are kept."""
        last = self._last_given  # another thread may replace it meanwhile
        if last is None or last[0] != symbols:
            placements = placements_of(self._evaluate_given(*symbols), self._given_ranks)
            last = self._last_given = symbols, dict(zip(self._given, placements, strict=True))
        return last[1]


def _span(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last."""
    if 0 in sizes:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def placements_of(flat: Sequence[int], ranks: Sequence[int]) -> tuple[Placement, ...]:
    """Sizes and strides of tensors of these ranks, which ``flat`` lists one after the other."""
    found, at = [], 0
    for rank in ranks:
        found.append((tuple(flat[at : at + rank]), tuple(flat[at + rank : at + 2 * rank])))
        at += 2 * rank
    return tuple(found)
