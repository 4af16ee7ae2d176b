"""What neighbouring sites cost beyond each alone: a result is held in the wider of the dtypes that its writer and its reader want.

A candidate is priced as it runs among its own kind: an int8 kernel writes codes for an int8 reader. Where the reader becomes another, the
result is written wider than was priced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from effc.compiler.ir.candidate import Candidate
from effc.compiler.ir.program import Call, Program
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec, Operand
from effc.costmodel.hardware import Hardware
from effc.costmodel.knapsack import Edge
from effc.costmodel.roofline import operand_bytes

#: Of an operand's memory, the share from which on writing it makes another value of it; less is the border around one.
_WHOLE = 0.5
_READ, _WRITTEN = ("read", "readwrite"), ("write", "readwrite")


@dataclass(frozen=True)
class Link:
    """The site of number ``reader`` reads, as its largest operand, what that of number ``writer`` writes as its largest: so many
    ``elements``.
    """

    writer: int
    reader: int
    elements: int


def links(programs: Iterable[tuple[Program, Mapping[str, int]]]) -> list[Link]:
    """Of the sites of ``programs``, in the order of `site.sites_of`."""
    found: list[Link] = []
    first = 0
    for program, values in programs:
        found += _links(program, values, first)
        first += len(program.calls)
    return found


@dataclass(frozen=True)
class _Span:
    """Bytes of a base that an operand takes up; ``elements``: that are accessed, and what ``share`` of it they are."""

    operand: Operand
    base: tuple[str, int]
    start: int
    stop: int
    elements: int
    share: float

    def meets(self, other: _Span) -> bool:
        return self.base == other.base and self.start < other.stop and other.start < self.stop


def _links(program: Program, values: Mapping[str, int], first: int) -> Iterator[Link]:
    held: list[tuple[int, _Span]] = []  # what was written last, and by which call
    for number, call in enumerate(program.calls, first):
        spans = list(_spans(program, call, values))
        read = _largest(s for s in spans if s.operand.role in _READ)
        if read is not None:
            yield from (Link(writer, number, span.elements) for writer, span in held if span.meets(read))
        written = [s for s in spans if s.operand.role in _WRITTEN and s.share >= _WHOLE]
        held = [(w, span) for w, span in held if not any(span.meets(s) for s in written)]
        result = _largest(written)
        if result is not None:
            held.append((number, result))


def _spans(program: Program, call: Call, values: Mapping[str, int]) -> Iterator[_Span]:
    spec = program.kernels[call.kernel]
    known = {s: v.evaluate(values) for s, v in zip(spec.symbols, call.symbols, strict=True)}
    for operand, pointer, accessed in zip(spec.operands, call.pointers, operand_bytes(spec, known), strict=True):
        size = operand.size.evaluate(known) * ITEM_SIZE[operand.dtype]
        if size > 0:
            start, elements = pointer.offset.evaluate(values), accessed // ITEM_SIZE[operand.dtype]
            yield _Span(operand, (pointer.base, pointer.index), start, start + size, elements, accessed / size)


def _largest(spans: Iterable[_Span]) -> _Span | None:
    return max(spans, key=lambda s: s.stop - s.start, default=None)


def edge(link: Link, writers: Sequence[Candidate], readers: Sequence[Candidate], hardware: Hardware) -> Edge | None:
    """What the candidates of the two sites cost together; None where that is nothing."""
    left = [_dtype(c.kernels[-1][0], c.symbols[-1], _WRITTEN) for c in writers]
    right = [_dtype(c.kernels[0][0], c.symbols[0], _READ) for c in readers]
    rows, columns = sorted(set(left)), sorted(set(right))
    costs = tuple(tuple(_seconds(a, b, link.elements, hardware) for b in columns) for a in rows)
    if not any(map(any, costs)):
        return None
    return Edge(
        link.writer, link.reader, tuple(rows.index(a) for a in left), tuple(columns.index(b) for b in right), costs
    )


def _dtype(spec: KernelSpec, symbols: Sequence[int], roles: Sequence[str]) -> str:
    """Of the largest operand in these roles; ``""`` where there is none."""
    known = dict(zip(spec.symbols, symbols, strict=True))
    found = [(o.size.evaluate(known), o.dtype) for o in spec.operands if o.role in roles]
    return max(found, key=lambda f: f[0], default=(0, ""))[1]


def _seconds(written: str, read: str, elements: int, hardware: Hardware) -> float:
    """What writing takes longer in the reader's dtype, where that is the wider one; a dtype that is not known costs nothing."""
    if not written or not read or ITEM_SIZE[read] <= ITEM_SIZE[written]:
        return 0.0
    whole = elements * ITEM_SIZE[read]
    levels = zip((hardware.l1, hardware.l2), hardware.caches[:2], strict=True)
    near = next((speed * hardware.cores for size, speed in levels if whole <= size * hardware.cores), None)
    far = hardware.caches[2] * hardware.cores if whole <= hardware.l3 else hardware.speed.bandwidth
    return elements * (ITEM_SIZE[read] - ITEM_SIZE[written]) / (near or far)
