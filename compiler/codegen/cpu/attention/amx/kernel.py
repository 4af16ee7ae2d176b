"""Attention in bf16 by tile registers (`amx`): two products of tiles around a softmax in f32.

A block is 32 queries, or as many as make all blocks equally tall, and meets blocks of keys one after the other: scores
``[query][key]`` of q, read where it lies, and the transposed keys; their online softmax (`softmax`; Dao et al., 2022); and
results ``[query][channel]`` of the probabilities, rounded to bf16 as in eager's kernel for the CPU, and v. k and v are packed
(`panels`) once for a run of up to four blocks, also of other heads that share them. Sums that go on over blocks of keys are
loaded into the tiles again, rescaled in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from effc.compiler.codegen.cpu import amx
from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.attention.amx.panels import Panels
from effc.compiler.codegen.cpu.attention.amx.softmax import RowSoftmax
from effc.compiler.codegen.cpu.attention.amx.stack import (
    LANES,
    QUERIES,
    STEP,
    TILE_BYTES,
    Areas,
    Blocking,
    State,
    blocking,
    load_lanes,
    load_splat,
)
from effc.compiler.codegen.cpu.attention.form import Attention
from effc.compiler.codegen.cpu.attention.memory import Tensors
from effc.compiler.codegen.cpu.attention.softmax import Softmax
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.expr import as_expr, floordiv

#: Numbers of the registers: sums by half of the queries and of the columns, then the halves of each factor.
_SUMS, _LEFT, _RIGHT = ((0, 1), (2, 3)), (4, 5), (6, 7)


def takes_tiles(attention: Attention, target: Target) -> bool:
    """Whether the CPU has tile registers, all is bf16, and channels are contiguous and fill rows of tiles (of v: columns)."""
    d, e = attention.channels
    if not target.has("amx_bf16") or d % STEP or e % LANES or _blocking(attention) is None:
        return False
    channels = (("q", "d4"), ("k", "d4"), ("v", "d5"), ("out", "d5"))
    factors = [attention.address(name).coefficient(dim) for name, dim in channels]
    contiguous = all(f is not None and f.constant == 1 for f in factors)
    return contiguous and all(attention.dtype(name) == "bf16" for name, _ in channels)


def _blocking(attention: Attention) -> Blocking | None:
    queries = attention.spec.dims[2].size.constant
    return blocking(attention.channels, None if queries is None else -(-queries // QUERIES) * attention.group)


def emit_amx(b: Builder, attention: Attention, target: Target) -> None:
    dims, chosen = attention.spec.dims, _blocking(attention)
    assert chosen is not None, "takes_tiles() admits only what fits"
    d, e = attention.channels
    units = dims[0].size * dims[1].size * floordiv(dims[2].size + (QUERIES - 1), as_expr(QUERIES))
    cycles = dims[3].size * ((d + e) // 16 + 30) + 2 * e
    with parallel_kernel(b, attention.spec, units, cycles) as share:
        _Amx(b, attention, target, share, chosen).write()


@dataclass
class _Amx:
    """A unit is a block of queries. ``height``: queries of each; the last one starts early enough to be as tall as the others, and stores
    only what is its own.
    """

    b: Builder
    attention: Attention
    target: Target
    share: Share
    blocking: Blocking

    def write(self) -> None:
        b, symbols = self.b, self.share.symbols
        self.tensors = Tensors(b, self.attention, self.target, self.share)
        self.tensors.ops.flushes = True
        self.softmax = Softmax(b, self.target, "f32")
        sizes = [scalar_expr(b, dim.size, symbols) for dim in self.attention.spec.dims]
        self.heads, self.queries, self.keys = sizes[1], sizes[2], sizes[3]
        self.blocks = b.maximum(b.div(b.add(self.queries, QUERIES - 1), QUERIES), 1)
        self.height = b.maximum(b.div(b.add(self.queries, b.sub(self.blocks, 1)), self.blocks), 1)
        self.areas = Areas(b, self.blocking)
        self.panels = Panels(b, self.tensors, self.areas)
        self.query_bytes = b.mul(self.tensors.stride("q", "d2"), 2)
        upper = b.minimum(self.height, amx.ROWS)
        lower = b.maximum(b.sub(self.height, amx.ROWS), 1)
        tiles = [(b.index(amx.ROWS), amx.ROW_BYTES)] * amx.TILES
        for half, rows in enumerate((upper, lower)):
            for tile in (*_SUMS[half], _LEFT[half]):
                tiles[tile] = (rows, amx.ROW_BYTES)
        shared = b.mul(self.blocks, self.attention.group)
        lo, hi = self.share.lo, self.share.hi
        with (
            amx.configured(b, tiles),
            b.loop(b.div(lo, shared), b.div(b.add(hi, b.sub(shared, 1)), shared)) as head,
        ):
            first = b.mul(head.index, shared)
            end = b.minimum(b.add(first, shared), hi)
            with b.loop(b.maximum(first, lo), end, self.blocking.run) as run:
                self._run(run.index, b.minimum(b.sub(end, run.index), self.blocking.run))

    # -- queries ------------------------------------------------------------------------------------------------------
    def _block(self, unit: Value) -> tuple[dict[str, Value], Value]:
        """``d0`` and ``d1`` of a unit, and its number among their blocks."""
        b = self.b
        number, outer = b.rem(unit, self.blocks), b.div(unit, self.blocks)
        if self.attention.causal:  # first, last, second, last but one…: the later a block, the more keys it sees
            half = b.div(number, 2)
            odd = b.compare("arith.cmpi", "ne", b.rem(number, 2), b.index(0))
            number = b.select(odd, b.sub(b.sub(self.blocks, 1), half), half)
        return {"d0": b.div(outer, self.heads), "d1": b.rem(outer, self.heads)}, number

    def _start(self, number: Value) -> Value:
        return self.b.minimum(self.b.mul(number, self.height), self.b.sub(self.queries, self.height))

    def _seen(self, start: Value) -> Value:
        """Keys that a block sees."""
        return self.b.minimum(self.keys, self.b.add(start, self.height)) if self.attention.causal else self.keys

    def _run(self, first: Value, count: Value) -> None:
        """``count`` units from ``first`` on, which share k and v."""
        b = self.b
        with b.loop(b.index(0), count, 1, [b.index(0)]) as loop:
            _, number = self._block(b.add(first, loop.index))
            state = self.areas.state(loop.index)
            for i in range(0, QUERIES, LANES):
                for value, base in (("-inf", state.highest), (0, state.total)):
                    b.store(b.constant(value, "f32", LANES), b.element_pointer(base, b.index(i), "f32"))
            loop.yield_([b.maximum(loop.carried[0], self._seen(self._start(number)))])
        end = loop.results[0]
        head, _ = self._block(first)
        # At least once, so that queries without any key get their zeros.
        with b.loop(b.index(0), b.maximum(end, 1), self.blocking.keys) as keys:
            self.panels.pack(head, keys.index, b.minimum(b.sub(end, keys.index), self.blocking.keys))
            with b.loop(b.index(0), count) as loop:
                at, number = self._block(b.add(first, loop.index))
                start = self._start(number)
                seen = self._seen(start)
                with b.when(b.compare("arith.cmpi", "slt", keys.index, b.maximum(seen, 1))):
                    here = b.minimum(b.sub(seen, keys.index), self.blocking.keys)
                    self._meet(at, start, keys.index, here, self.areas.state(loop.index))
        with b.loop(b.index(0), count) as loop:
            at, number = self._block(b.add(first, loop.index))
            self._finish(at, number, self.areas.state(loop.index))

    def _meet(self, at: dict[str, Value], start: Value, key: Value, count: Value, state: State) -> None:
        """The queries from ``start`` on with ``count`` keys from ``key`` on."""
        b = self.b
        steps = b.div(b.add(count, STEP - 1), STEP)
        q = self.tensors.pointer("q", {**at, "d2": start})
        amx.by_halves(b, self.height, lambda halves: self._scores(q, steps, halves))
        RowSoftmax(b, self.attention, self.tensors, self.softmax, self.areas, at, start, self.height, key, count).write(
            state
        )
        first = b.compare("arith.cmpi", "eq", key, b.index(0))
        amx.by_halves(b, self.height, lambda halves: self._accumulate(state, steps, first, halves))

    # -- products -----------------------------------------------------------------------------------------------------
    def _scores(self, q: Value, steps: Value, halves: int) -> None:
        """``steps`` of keys; a step is two tiles wide."""
        b, (d, _) = self.b, self.blocking.channels
        row_bytes = b.index(self.blocking.keys * 4)
        length = d // STEP
        with b.loop(b.index(0), steps) as loop:
            panel = b.element_pointer(self.areas.key_panels, b.mul(loop.index, 2 * length * TILE_BYTES), "i8")
            for i in range(halves):
                for j in range(2):
                    amx.clear_tile(b, _SUMS[i][j])
            for s in range(length):
                left = b.element_pointer(q, b.index(s * STEP), "i16")
                self._multiply(left, self.query_bytes, [self._tile(panel, j * length + s) for j in range(2)], halves)
            at = b.element_pointer(self.areas.scores, b.mul(loop.index, STEP), "f32")
            self._each(at, row_bytes, 2, halves, amx.store_tile)

    def _accumulate(self, state: State, steps: Value, first: Value, halves: int) -> None:
        """Probabilities times values, added to the state's results; the ``first`` block of keys finds none."""
        b, (_, e) = self.b, self.blocking.channels
        row_bytes, result_bytes, tiles = b.index(self.blocking.keys * 4), b.index(e * 4), e // LANES
        for c in range(0, tiles, 2):
            columns = min(2, tiles - c)
            results = b.element_pointer(state.results, b.index(c * LANES), "f32")

            def clear(columns: int = columns) -> list[Value]:
                for i in range(halves):
                    for j in range(columns):
                        amx.clear_tile(b, _SUMS[i][j])
                return []

            def load(results: Value = results, columns: int = columns) -> list[Value]:
                self._each(results, result_bytes, columns, halves, amx.load_tile)
                return []

            b.choose(first, (), clear, load)
            with b.loop(b.index(0), steps) as loop:
                left = b.element_pointer(self.areas.scores, b.mul(loop.index, STEP), "i16")
                panel = b.element_pointer(self.areas.value_panels, b.mul(loop.index, tiles * TILE_BYTES), "i8")
                self._multiply(left, row_bytes, [self._tile(panel, c + j) for j in range(columns)], halves)
            self._each(results, result_bytes, columns, halves, amx.store_tile)

    def _multiply(self, left: Value, stride: Value, right: list[Value], halves: int) -> None:
        """Add the products of rows from ``left`` on, ``stride`` bytes apart, and of the tiles at ``right``."""
        b = self.b
        for j, panel in enumerate(right):
            amx.load_tile(b, _RIGHT[j], panel, b.index(amx.ROW_BYTES))
        for i in range(halves):
            amx.load_tile(b, _LEFT[i], b.element_pointer(left, b.mul(stride, i * amx.ROWS), "i8"), stride)
            for j in range(len(right)):
                amx.multiply_bf16(b, _SUMS[i][j], _LEFT[i], _RIGHT[j])

    def _each(
        self, at: Value, row_bytes: Value, columns: int, halves: int, move: Callable[[Builder, int, Value, Value], None]
    ) -> None:
        """Load or store the sums, which lie side by side from ``at`` on."""
        b = self.b
        for i in range(halves):
            line = b.element_pointer(at, b.mul(row_bytes, i * amx.ROWS), "i8")
            for j in range(columns):
                move(b, _SUMS[i][j], b.element_pointer(line, b.index(j * amx.ROW_BYTES), "i8"), row_bytes)

    def _tile(self, panel: Value, number: int) -> Value:
        return self.b.element_pointer(panel, self.b.index(number * TILE_BYTES), "i8")

    # -- the result ---------------------------------------------------------------------------------------------------
    def _finish(self, at: dict[str, Value], number: Value, state: State) -> None:
        """Divide by the sums and write all queries but those that another unit writes."""
        b, t, areas, softmax = self.b, self.tensors, self.areas, self.softmax
        start = self._start(number)
        has_lse = self.attention.has("lse")
        for i in range(0, QUERIES, LANES):
            whole = softmax.divisor(load_lanes(b, state.total, i), nan_rows=self.attention.nan_rows)
            inverse = b.op("arith.divf", b.constant(1, "f32", LANES), whole)
            b.store(inverse, b.element_pointer(areas.factor, b.index(i), "f32"))
            if has_lse:
                highest = softmax.finite(load_lanes(b, state.highest, i))
                value = b.op("arith.addf", highest, softmax.function("math.log", whole))
                b.store(value, b.element_pointer(areas.shift, b.index(i), "f32"))
        with b.loop(b.sub(b.mul(number, self.height), start), self.height) as row:
            place = {**at, "d2": b.add(start, row.index)}
            inverse, line = load_splat(b, areas.factor, row.index), t.pointer("out", place)
            for c, result in enumerate(state.vectors(row.index)):
                value = b.op("arith.mulf", load_lanes(b, result), inverse)
                t.store("out", value, t.step("out", line, "d5", b.index(c * LANES)))
            if has_lse:
                value = b.load(b.element_pointer(areas.shift, row.index, "f32"), "f32")
                t.store("lse", value, t.pointer("lse", place))
