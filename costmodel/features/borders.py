"""Zeros around a window: which products of a convolution lie outside, and are left out by the code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from effc.compiler.ir.spec import Instr, KernelSpec
from effc.costmodel.features.moves import steps


@dataclass(frozen=True)
class Border:
    """``inside``: share of the products that are inside; ``first``, ``last``: of the rows that tiles divide, how many at either end have
    products outside; ``elsewhere``: whether there is a border along other dimensions too.
    """

    inside: float = 1.0
    first: int = 0
    last: int = 0
    elsewhere: bool = False

    @staticmethod
    def of(spec: KernelSpec, load: Instr, sizes: Sequence[int], values: Mapping[str, int], row: int) -> Border:
        """Of a factor's masked ``load``; ``row``: the dimension that tiles divide, -1 for none. What is no window counts as inside."""
        found, first, last, elsewhere = 1.0, 0, 0, False
        for index, size in _comparisons(spec, load.args[0]) if load.args else ():
            walked = dict(steps(index["expr"], values))
            taps = [d for d in _dims(walked) if spec.dims[d].kind != "parallel"]
            places = [d for d in _dims(walked) if spec.dims[d].kind == "parallel"]
            if len(taps) != 1 or len(places) > 1:
                continue
            zero = {**values, **{f"d{d}": 0 for d in (*taps, *places)}}
            start, end = index["expr"].evaluate(zero), size["expr"].evaluate(values)
            reach, count = walked[f"d{taps[0]}"], sizes[taps[0]]
            step, rows = (walked[f"d{places[0]}"], sizes[places[0]]) if places else (1, 1)
            if step <= 0 or reach <= 0:
                continue
            starts = [start + reach * tap for tap in range(count)]
            each = [(_below(-s, step, rows), _below(end - s, step, rows)) for s in starts]
            found *= sum(max(high - low, 0) for low, high in each) / max(count * rows, 1)
            if places[:1] == [row] and each:
                first, last = each[0][0], rows - max(each[-1][1], each[0][0])
            else:
                elsewhere = True
        return Border(found, first, last, elsewhere)


def _below(distance: int, step: int, rows: int) -> int:
    """How many of so many places, ``step`` apart, lie below a distance from the first one."""
    return min(max(-(-distance // step), 0), rows)


def _dims(walked: Mapping[str, int]) -> list[int]:
    return [int(name[1:]) for name in walked if name[0] == "d"]


def _comparisons(spec: KernelSpec, mask: int) -> list[tuple[Instr, Instr]]:
    """``(index, size)`` of each comparison of a conjunction of them."""
    instr = spec.body[mask]
    if instr.op == "arith.andi":
        return [pair for arg in instr.args for pair in _comparisons(spec, arg)]
    pair = [spec.body[arg] for arg in instr.args]
    plain = instr.op == "arith.cmpi" and instr["predicate"] == "ult" and all(i.op == "index" for i in pair)
    return [(pair[0], pair[1])] if plain else []
