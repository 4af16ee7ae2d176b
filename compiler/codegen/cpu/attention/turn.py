"""What attention turns on its way between memory and scratch: q in, the result out, and a mask with its queries in the lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.attention.form import Attention
from effc.compiler.codegen.cpu.attention.memory import Tensors
from effc.compiler.codegen.cpu.attention.tiles import Scratch
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.transpose import transpose


@dataclass
class Queries:
    """``vectors`` vectors of queries from ``first`` on. Lanes beyond the last query repeat it: they write the same values again."""

    b: Builder
    attention: Attention
    tensors: Tensors
    scratch: Scratch
    at: dict[str, Value]
    first: Value
    last: Value
    vectors: int

    def __post_init__(self) -> None:
        b, lanes = self.b, self.scratch.lanes
        index = [
            b.op("arith.addi", b.broadcast(b.add(self.first, j * lanes), lanes), b.iota(lanes))
            for j in range(self.vectors)
        ]
        self.index = [b.op("arith.minsi", v, b.broadcast(self.last, lanes)) for v in index]

    def pack(self) -> None:
        """q times the scale, into scratch."""
        b, t, scratch = self.b, self.tensors, self.scratch
        d, _ = self.attention.channels
        scale = b.constant(self.attention.scale, scratch.kind, scratch.lanes)
        if t.contiguous("q", "d4") and d % scratch.lanes == 0:
            for j in range(self.vectors):
                lines = self._lines("q", j)
                with b.loop(b.index(0), b.index(d), scratch.lanes) as loop:
                    rows = [t.load("q", t.step("q", p, "d4", loop.index), scratch.lanes) for p in lines]
                    for r, column in enumerate(transpose(b, rows)):
                        scratch.put(scratch.q, b.add(loop.index, r), j, b.op("arith.mulf", column, scale))
            return
        with b.loop(b.index(0), b.index(d)) as loop:
            for j in range(self.vectors):
                value = t.load("q", t.pointer("q", {**self.at, "d2": self.index[j], "d4": loop.index}), scratch.lanes)
                scratch.put(scratch.q, loop.index, j, b.op("arith.mulf", value, scale))

    def write(self, inverse: Sequence[Value]) -> None:
        """Results times ``inverse``, out of scratch."""
        b, t, scratch = self.b, self.tensors, self.scratch
        _, e = self.attention.channels

        def result(row: Value, j: int) -> Value:
            return b.op("arith.mulf", scratch.get(scratch.sums, row, j), inverse[j])

        if t.contiguous("out", "d5") and e % scratch.lanes == 0:
            for j in range(self.vectors):
                lines = self._lines("out", j)
                with b.loop(b.index(0), b.index(e), scratch.lanes) as loop:
                    columns = [result(b.add(loop.index, r), j) for r in range(scratch.lanes)]
                    for p, row in zip(lines, transpose(b, columns), strict=True):
                        t.store("out", row, t.step("out", p, "d5", loop.index))
            return
        with b.loop(b.index(0), b.index(e)) as loop:
            for j in range(self.vectors):
                place = t.pointer("out", {**self.at, "d2": self.index[j], "d5": loop.index})
                t.store("out", result(loop.index, j), place)

    def mask(self, key: Value, count: Value) -> None:
        """The mask of ``count`` keys from ``key`` on, as what is added to a score, where the scores will stand."""
        b, t, scratch = self.b, self.tensors, self.scratch
        for j in range(self.vectors):
            lines = [t.step("mask", line, "d3", key) for line in self._lines("mask", j)]
            with b.loop(b.index(0), count, scratch.lanes) as loop:
                within = b.first_lanes(scratch.lanes, b.sub(count, loop.index))
                rows = [t.load_first("mask", t.step("mask", p, "d3", loop.index), within) for p in lines]
                for r, column in enumerate(transpose(b, [t.added(row) for row in rows])):
                    scratch.put(scratch.scores, b.add(loop.index, r), j, column)

    def _lines(self, name: str, j: int) -> list[Value]:
        """Pointers to the queries of vector ``j``."""
        b, lanes = self.b, self.scratch.lanes
        positions = [b.minimum(b.add(self.first, j * lanes + r), self.last) for r in range(lanes)]
        return [self.tensors.pointer(name, {**self.at, "d2": position}) for position in positions]
