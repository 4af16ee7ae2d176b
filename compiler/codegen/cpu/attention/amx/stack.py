"""What attention by tile registers keeps on the stack, and how large its blocks are for that."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu import amx
from effc.compiler.codegen.cpu.attention.form import STACK_BYTES
from effc.compiler.codegen.cpu.text import Builder, Value, vector_type

#: Queries of a block: two tiles of rows.
QUERIES = 2 * amx.ROWS
#: Keys of a step: a row of probabilities fills a tile's, and their scores are two tiles wide.
STEP = amx.ROW_BYTES // 2
#: Lanes of a vector of f32.
LANES = amx.ROW_BYTES // 4
#: Bytes of a whole tile.
TILE_BYTES = amx.ROWS * amx.ROW_BYTES
#: Most blocks of queries of a run: a block's share of packing is then below a tenth of its work, with as many channels as keys.
_LONGEST = 4


@dataclass(frozen=True)
class Blocking:
    """``keys`` of a block of keys, a multiple of `STEP`; ``run``: blocks of queries that meet it in turn, packed once for all of them."""

    channels: tuple[int, int]
    keys: int
    run: int

    @property
    def state_bytes(self) -> int:
        """Of a block of queries: results so far, and of each query the maximum and the sum of exponentials."""
        return QUERIES * (self.channels[1] + 2) * 4

    @property
    def panel_bytes(self) -> tuple[int, int]:
        """Of a block's keys, and of their values."""
        d, e = self.channels
        return self.keys * d * 2, self.keys * e * 2

    @property
    def total_bytes(self) -> int:
        scores, rows = QUERIES * self.keys * 4, QUERIES * (LANES + 2) * 4
        return sum(self.panel_bytes) + scores + rows + self.run * self.state_bytes

    @property
    def overhead(self) -> float:
        """Cycles a key and block of queries beside products and exponentials: transposing k and interleaving v, and rescaling."""
        d, e = self.channels
        return (5 * d + 3 * e) / (32 * self.run) + (3 * e + 300) / self.keys


def blocking(channels: tuple[int, int], blocks: int | None) -> Blocking | None:
    """The least overhead that fits the stack; ``blocks``: of queries that share keys, None where that is not known. None: nothing fits."""
    longest = min(_LONGEST, blocks or _LONGEST)
    choices = [Blocking(channels, keys, run) for keys in (32, 64, 128) for run in range(1, longest + 1)]
    return min((c for c in choices if c.total_bytes <= STACK_BYTES), key=lambda c: c.overhead, default=None)


@dataclass
class Areas:
    """Arrays on the stack: of a block of queries ``scores`` ``[query][key]`` (f32, then the probabilities in bf16 at the start of each
    row), ``partial`` ``[query][lane]``, ``shift`` and ``factor`` ``[query]``.
    """

    b: Builder
    blocking: Blocking

    def __post_init__(self) -> None:
        b, keys = self.b, self.blocking.keys
        self.scores = b.stack(QUERIES * keys, "f32")
        self.partial = b.stack(QUERIES * LANES, "f32")
        self.shift, self.factor = b.stack(QUERIES, "f32"), b.stack(QUERIES, "f32")
        self.key_panels, self.value_panels = (b.stack(n, "i8") for n in self.blocking.panel_bytes)
        self._states = b.stack(self.blocking.run * self.blocking.state_bytes, "i8")
        with b.loop(b.index(0), b.index(QUERIES)) as loop:  # rows that a lower block lacks are folded too
            b.store(b.constant(0, "f32", LANES), self.partial_row(loop.index))

    def score_row(self, row: Value) -> Value:
        return self.b.element_pointer(self.scores, self.b.mul(row, self.blocking.keys), "f32")

    def partial_row(self, row: Value) -> Value:
        return self.b.element_pointer(self.partial, self.b.mul(row, LANES), "f32")

    def state(self, number: Value) -> State:
        start = self.b.element_pointer(self._states, self.b.mul(number, self.blocking.state_bytes), "i8")
        return State(self.b, start, self.blocking.channels[1])


@dataclass
class State:
    """The online softmax of a block of queries: ``results`` ``[query][channel]``, ``highest`` and ``total`` ``[query]``, all f32."""

    b: Builder
    results: Value
    channels: int

    def __post_init__(self) -> None:
        b = self.b
        self.highest = b.element_pointer(self.results, b.index(QUERIES * self.channels), "f32")
        self.total = b.element_pointer(self.highest, b.index(QUERIES), "f32")

    def vectors(self, row: Value) -> list[Value]:
        """Pointers to the results of a query."""
        b = self.b
        line = b.element_pointer(self.results, b.mul(row, self.channels), "f32")
        return [b.element_pointer(line, b.index(c), "f32") for c in range(0, self.channels, LANES)]


def load_lanes(b: Builder, base: Value, first: int = 0) -> Value:
    """A vector of f32 from element ``first`` on."""
    return b.load(b.element_pointer(base, b.index(first), "f32"), vector_type(LANES, "f32"))


def load_splat(b: Builder, base: Value, row: Value) -> Value:
    """Element ``row`` of f32 in all lanes."""
    return b.broadcast(b.load(b.element_pointer(base, row, "f32"), "f32"), LANES)
