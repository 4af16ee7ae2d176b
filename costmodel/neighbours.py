"""What neighbouring sites cost beyond each alone: a result is held in the wider of the dtypes that its writer and its reader want.

A candidate is priced as it runs among its own kind: an int8 kernel writes codes for an int8 reader. Where the reader becomes another, the
result is written wider than was priced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from effc.compiler.ir.candidate import Candidate
from effc.compiler.ir.program import Program
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec
from effc.costmodel.hardware import Hardware
from effc.costmodel.knapsack import Edge
from effc.costmodel.spans import Span, spans

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


def _links(program: Program, values: Mapping[str, int], first: int) -> Iterator[Link]:
    held: list[tuple[int, Span]] = []  # what was written last, and by which call
    for number, call in enumerate(program.calls, first):
        touched = list(spans(0, program, call, values))
        read = _largest(s for s in touched if s.operand.role in _READ)
        if read is not None:
            yield from (
                Link(writer, number, span.accessed // ITEM_SIZE[span.operand.dtype])
                for writer, span in held
                if span.meets(read)
            )
        written = [s for s in touched if s.writes and s.accessed >= _WHOLE * (s.end - s.start)]
        held = [(w, span) for w, span in held if not any(span.meets(s) for s in written)]
        result = _largest(written)
        if result is not None:
            held.append((number, result))


def _largest(spans: Iterable[Span]) -> Span | None:
    return max(spans, key=lambda s: s.end - s.start, default=None)


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
