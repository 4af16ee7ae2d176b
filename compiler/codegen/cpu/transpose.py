"""Square transposes in registers: ``lanes`` vectors of ``lanes`` elements, in log2(lanes) rounds of shuffles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from effc.compiler.codegen.cpu.text import Builder, Value, split_type, vector_type


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


def transposed_rows(b: Builder, rows: Sequence[Value], count: int | None = None) -> list[Value]:
    """Vector *j* of the result holds element *j* of what lies at each of ``rows``, pointers to float32: the first ``count`` of them, all
    unless told; no more is read. There are 8 or 16 rows, the lanes of a vector.

    Halves of two rows are loaded side by side, which costs Intel's cores no shuffle; squares of four are transposed within 128 bits, and 16
    lanes take one round more: 48 shuffles where `transpose` takes 64, and 16 of 24. On Zen 4, which gains 7 %, each such load is one too.
    """
    lanes, half = len(rows), len(rows) // 2
    assert lanes in (8, 16), "vectors of 256 or 512 bits"
    count, found = lanes if count is None else count, list[Value]()
    for first in range(0, count, half):
        mask = b.first_lanes(half, b.index(count - first)) if count - first < half else None
        squares = [
            _squares(b, [_side_by_side(b, rows[i], rows[i + 4], first, half, mask) for i in range(corner, corner + 4)])
            for corner in range(0, lanes, 8)
        ]
        if lanes == 8:
            found += squares[0]
            continue
        for place in (0, 4):
            picks = [place + i + k for k in (0, 8, 16, 24) for i in range(4)]
            found += [_picked(b, x, y, picks) for x, y in zip(*squares, strict=True)]
    return found[:count]


def _side_by_side(b: Builder, x: Value, y: Value, first: int, count: int, mask: Value | None) -> Value:
    """``count`` elements of two rows from number ``first`` on, one after the other; zeros where ``mask`` is off."""
    at = [b.element_pointer(row, b.index(first), "f32") for row in (x, y)]
    if mask is None:
        low, high = (b.load(p, vector_type(count, "f32")) for p in at)
    else:
        low, high = (b.masked_load(p, mask, b.constant(0, "f32", count)) for p in at)
    return _picked(b, low, high, range(2 * count))


def _squares(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """Four vectors, transposed within each 128 bits."""
    lanes = split_type(rows[0].type)[0]

    def within(x: Value, y: Value, picks: Sequence[int]) -> Value:
        return _picked(b, x, y, [k + p % 4 + p // 4 * lanes for k in range(0, lanes, 4) for p in picks])

    low, high, first, second = (0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7)
    found = []
    for half in (low, high):
        upper, lower = within(rows[0], rows[1], half), within(rows[2], rows[3], half)
        found += [within(upper, lower, first), within(upper, lower, second)]
    return found


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
    return _picked(b, x, y, low), _picked(b, x, y, high)


def _picked(b: Builder, x: Value, y: Value, picks: Sequence[int]) -> Value:
    """The elements ``picks`` of the concatenation of ``x`` and ``y``, as many as they are."""
    to = vector_type(len(picks), split_type(x.type)[1])
    return b.emit(f"vector.shuffle {x.name}, {y.name} [{', '.join(map(str, picks))}] : {x.type}, {y.type}", to)
