"""Square transposes in registers: ``lanes`` vectors of ``lanes`` elements, in log2(lanes) rounds of shuffles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from effc.compiler.codegen.cpu.text import Builder, Value, split_type


def transpose(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """Vector *j* of the result holds element *j* of every row. ``len(rows)`` is the number of lanes, a power of two.

    A round exchanges the off-diagonal halves of 2x2 blocks whose side doubles (the recursive transpose, Eklundh 1972).
    """
    values, lanes = list(rows), len(rows)
    half = 1
    while half < lanes:
        for i in range(lanes):
            if not i & half:
                values[i], values[i + half] = _exchange(b, values[i], values[i + half], half)
        half *= 2
    return values


def transposed_sum(b: Builder, rows: Sequence[Value]) -> Value:
    """Lane *j* holds the sum of row *j*."""
    return transposed_fold(b, rows, lambda x, y: b.op("arith.addf", x, y))


def transposed_fold(b: Builder, rows: Sequence[Value], combine: Callable[[Value, Value], Value]) -> Value:
    """Lane *j* holds row *j*, folded: all vectors of the transpose combined, where each round combines what it exchanged."""
    values, half = list(rows), 1
    while len(values) > 1:
        pairs = [_exchange(b, x, y, half) for x, y in zip(values[::2], values[1::2], strict=True)]
        values = [combine(x, y) for x, y in pairs]
        half *= 2
    return values[0]


def _exchange(b: Builder, x: Value, y: Value, half: int) -> tuple[Value, Value]:
    """The off-diagonal halves of the 2x2 blocks of side ``half`` that ``x`` and ``y`` hold, exchanged."""
    lanes = split_type(x.type)[0]
    low = [i + lanes - half if i & half else i for i in range(lanes)]
    high = [i + lanes if i & half else i + half for i in range(lanes)]
    return _shuffle(b, x, y, low), _shuffle(b, x, y, high)


def _shuffle(b: Builder, x: Value, y: Value, mask: Sequence[int]) -> Value:
    """The elements ``mask`` of the concatenation of ``x`` and ``y``."""
    assert split_type(x.type)[0] == len(mask), "a transpose is square"
    picks = ", ".join(map(str, mask))
    return b.emit(f"vector.shuffle {x.name}, {y.name} [{picks}] : {x.type}, {y.type}", x.type)
