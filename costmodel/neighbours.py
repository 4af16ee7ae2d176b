"""What neighbouring sites cost beyond each alone: a result is held in the wider of the dtypes that its writer and its reader want.

A candidate is priced as it runs among its own kind: an int8 kernel writes codes for an int8 reader. Where the reader becomes another, the
result is written wider than was priced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from effc.compiler.ir.candidate import Candidate
from effc.compiler.ir.program import Program
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec
from effc.costmodel.graph import dataflow
from effc.costmodel.hardware import Hardware
from effc.costmodel.knapsack import Edge


@dataclass(frozen=True)
class Link:
    """The site of number ``reader`` reads what that of number ``writer`` writes."""

    writer: int
    reader: int


def links(programs: Iterable[tuple[Program, Mapping[str, int]]]) -> list[Link]:
    """Of the sites of ``programs``, in the order of `site.sites_of`."""
    found: list[Link] = []
    first = 0
    for program, values in programs:
        found += [Link(first + a, first + b) for a, b in dataflow(program, values).edges if a != b]
        first += len(program.calls)
    return found


def edge(link: Link, writers: Sequence[Candidate], readers: Sequence[Candidate], hardware: Hardware) -> Edge | None:
    """What the candidates of the two sites cost together; None where that is nothing."""
    written = [_dtypes(c.kernels[-1][0], c.symbols[-1], ("write", "readwrite")) for c in writers]
    read = [_dtypes(c.kernels[0][0], c.symbols[0], ("read", "readwrite")) for c in readers]
    elements = max(written[0].keys() & read[0].keys(), default=0)  # of the value that goes from one to the other
    left = [found.get(elements, "") for found in written]
    right = [found.get(elements, "") for found in read]
    rows, columns = sorted(set(left)), sorted(set(right))
    costs = tuple(tuple(_seconds(a, b, elements, hardware) for b in columns) for a in rows)
    if not any(map(any, costs)):
        return None
    return Edge(
        link.writer, link.reader, tuple(rows.index(a) for a in left), tuple(columns.index(b) for b in right), costs
    )


def _dtypes(spec: KernelSpec, symbols: Sequence[int], roles: Sequence[str]) -> dict[int, str]:
    """Of the operands in these roles, by their number of elements; of several alike the first."""
    known = dict(zip(spec.symbols, symbols, strict=True))
    operands = [o for o in spec.operands if o.role in roles]
    return {o.size.evaluate(known): o.dtype for o in reversed(operands)}


def _seconds(written: str, read: str, elements: int, hardware: Hardware) -> float:
    """What writing takes longer in the reader's dtype, where that is the wider one; a dtype that is not known costs nothing."""
    if not written or not read or ITEM_SIZE[read] <= ITEM_SIZE[written]:
        return 0.0
    whole = elements * ITEM_SIZE[read]
    levels = zip((hardware.l1, hardware.l2), hardware.caches[:2], strict=True)
    near = next((speed * hardware.cores for size, speed in levels if whole <= size * hardware.cores), None)
    far = hardware.caches[2] * hardware.cores if whole <= hardware.l3 else hardware.speed.bandwidth
    return elements * (ITEM_SIZE[read] - ITEM_SIZE[written]) / (near or far)
