"""The memory that a model's kernels touch, piece by piece, and how much else is touched between two uses of a piece.

That is its reuse distance: a cache that replaces what was used longest ago still holds the piece if the distance fits it (Mattson, Gecsei,
Slutz, Traiger: "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2), 1970). Kernels stand for points in time, and the
model is called again and again: before its first kernel comes its last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from effc.compiler.ir.program import Call, Program
from effc.compiler.ir.spec import ITEM_SIZE
from effc.costmodel.roofline import operations, weighted
from effc.costmodel.spans import Base, Span, spans, symbols_of


@dataclass(frozen=True)
class Touch:
    """A kernel's use of a piece of memory that is used as a whole. ``read``, ``written``: bytes, each element once. ``since``: bytes that
    are touched by the kernels from its last use on, without this one; ``until``: by this one and those before its next use.
    ``kept``: whether what it holds afterwards is read by a kernel or is a result of the model.
    """

    piece: int
    read: int
    written: int
    since: int
    until: int
    kept: bool


@dataclass(frozen=True)
class Layer:
    """A kernel call. ``flops``: of contractions, a multiply-add counted as two; ``operations``: all arithmetic, see `roofline.operations`;
    ``rate``: how many times faster than in float32 it is. ``scratch``: bytes of memory of its own. ``sources``: the layers whose results it
    reads, and inputs of the model that are no parameters, as negative numbers. ``is_result``: whether the model returns what it writes.
    ``seconds``: measured, or None.
    """

    name: str
    location: str
    flops: int
    operations: int
    rate: float
    scratch: int
    touches: tuple[Touch, ...]
    sources: frozenset[int] = frozenset()
    is_result: bool = False
    seconds: float | None = None


def layers_of(programs: Sequence[tuple[Program, Mapping[str, int]]], isa: Collection[str]) -> tuple[Layer, ...]:
    """The kernel calls of programs in order, each program with the values of its symbols, on a CPU with the flags ``isa``. What a program
    reads counts as an input of the model also where another program wrote it.
    """
    uses = [use for number, (p, values) in enumerate(programs) for use in _uses(number, p, values)]
    pieces = _Pieces(uses)
    touches = pieces.touches()
    sources = pieces.sources()
    return tuple(_layer(use, touched, read, isa) for use, touched, read in zip(uses, touches, sources, strict=True))


@dataclass(frozen=True)
class _Use:
    """A call with all of its operands but scratch memory."""

    program: Program
    call: Call
    known: Mapping[str, int]
    flops: int
    spans: tuple[Span, ...]


def _uses(number: int, program: Program, values: Mapping[str, int]) -> Iterator[_Use]:
    for call in program.calls:
        touched = tuple(spans(number, program, call, values))
        yield _Use(program, call, symbols_of(program, call, values), call.flops.evaluate(values), touched)


class _Pieces:
    """All memory of ``uses``, cut wherever an operand starts or ends."""

    def __init__(self, uses: Sequence[_Use]) -> None:
        cuts: dict[Base, set[int]] = {}
        for use in uses:
            for span in use.spans:
                cuts.setdefault(span.base, set()).update((span.start, span.end))
        self._cuts = {base: sorted(found) for base, found in cuts.items()}
        first = 0
        self._first: dict[Base, int] = {}
        for base, found in self._cuts.items():
            self._first[base] = first
            first += len(found) - 1
        self._count = first
        self._results = {p for use in uses for s in use.spans if s.is_result for p, _ in self._of(s)}
        #: Of each use the bytes read and written of each piece, and whether all of it is written.
        self._moved = [self._moves(use) for use in uses]

    def _of(self, span: Span) -> Iterator[tuple[int, int]]:
        """The pieces of a span, with their sizes in bytes."""
        cuts, first = self._cuts[span.base], self._first[span.base]
        begin, end = bisect_left(cuts, span.start), bisect_left(cuts, span.end)
        for i in range(begin, end):
            yield first + i, cuts[i + 1] - cuts[i]

    def _moves(self, use: _Use) -> dict[int, tuple[int, int, bool]]:
        found: dict[int, tuple[int, int, bool]] = {}
        for span in use.spans:
            share = min(1.0, span.accessed / (span.end - span.start))
            for piece, size in self._of(span):
                part = round(share * size)
                read, written, whole = found.get(piece, (0, 0, False))
                read = max(read, part) if span.reads else read
                written = min(size, written + part) if span.writes else written
                found[piece] = (read, written, whole or (span.writes and not span.reads and part == size))
        return found

    def touches(self) -> list[tuple[Touch, ...]]:
        """Of each use."""
        distances = self._distances()
        users: dict[int, list[int]] = {}
        for number, moved in enumerate(self._moved):
            for piece in moved:
                users.setdefault(piece, []).append(number)
        found = []
        for number, moved in enumerate(self._moved):
            touched = []
            for piece, (read, written, _) in moved.items():
                at = bisect_left(users[piece], number)
                later = users[piece][at + 1 :] + users[piece][: at + 1]
                until, kept = distances[later[0]][piece], self._is_kept(piece, later)
                touched.append(Touch(piece, read, written, distances[number][piece], until, kept))
            found.append(tuple(touched))
        return found

    def _is_kept(self, piece: int, later: Sequence[int]) -> bool:
        """Whether one of the uses ``later`` reads the piece before it is written anew."""
        if piece in self._results:
            return True
        for number in later:
            read, _, whole = self._moved[number][piece]
            if read or whole:
                return read > 0
        return False

    def _distances(self) -> list[dict[int, int]]:
        """Of each use and each of its pieces, the bytes touched since the piece's last use."""
        sizes = np.zeros(self._count, dtype=np.int64)
        for moved in self._moved:
            for piece, (read, written, _) in moved.items():
                sizes[piece] = max(sizes[piece], read, written)
        last = np.full(self._count, -1, dtype=np.int64)
        found: list[dict[int, int]] = []
        for lap in range(2):  # the second time, all memory has been touched before
            for number, moved in enumerate(self._moved):
                pieces = np.fromiter(moved, dtype=np.int64, count=len(moved))
                if lap:
                    between = {int(p): int(sizes[last >= p].sum()) for p in np.unique(last[pieces])}
                    found.append({piece: between[int(last[piece])] for piece in moved})
                last[pieces] = lap * len(self._moved) + number
        return found

    def sources(self) -> list[frozenset[int]]:
        """Of each use the ones whose results it reads; inputs that are no parameters are negative."""
        writer: dict[int, int] = {}
        inputs = {base: -1 - i for i, base in enumerate(b for b in self._cuts if b[1] == "input")}
        for base, number in inputs.items():
            for i in range(len(self._cuts[base]) - 1):
                writer[self._first[base] + i] = number
        found = []
        for number, moved in enumerate(self._moved):
            found.append(frozenset(writer[p] for p, (read, _, _) in moved.items() if read and p in writer))
            writer.update({piece: number for piece, (_, written, _) in moved.items() if written})
        return found


def _layer(use: _Use, touches: tuple[Touch, ...], sources: frozenset[int], isa: Collection[str]) -> Layer:
    spec, call = use.program.kernels[use.call.kernel], use.call
    scratch = [o.size.evaluate(use.known) * ITEM_SIZE[o.dtype] for o in spec.operands if o.role == "scratch"]
    count, cost = operations(spec, use.known), weighted(spec, use.known, isa)
    return Layer(
        name=call.name or spec.template,
        location=call.location,
        flops=use.flops,
        operations=count,
        rate=count / cost if cost else 1.0,
        scratch=sum(scratch),
        touches=touches,
        sources=sources,
        is_result=any(p.base == "output" for p in call.pointers),
    )
