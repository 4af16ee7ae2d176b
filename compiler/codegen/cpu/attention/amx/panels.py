"""A block of keys and values as right factors of tile registers: pairs of neighbours in the sum lie together (`amx`).

Each tile lies by itself. Of k the sum runs over channels: rows of a tile are pairs of channels, for 16 keys, so 32-bit elements are
transposed. Of v it runs over keys: rows are pairs of keys, for 16 channels, interleaved.
"""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu import amx
from effc.compiler.codegen.cpu.attention.amx.stack import LANES, STEP, TILE_BYTES, Areas
from effc.compiler.codegen.cpu.attention.memory import Tensors
from effc.compiler.codegen.cpu.text import Builder, Value, vector_type
from effc.compiler.codegen.cpu.transpose import transpose


@dataclass
class Panels:
    """Whole `STEP`s of keys are packed. Beyond the last key, k is its repetition, whose scores nobody reads, and v is zero."""

    b: Builder
    tensors: Tensors
    areas: Areas

    def pack(self, at: dict[str, Value], key: Value, count: Value) -> None:
        """``count`` keys from ``key`` on, of the head that ``at`` (``d0``, ``d1``) sees."""
        b = self.b
        steps = b.div(b.add(count, STEP - 1), STEP)
        last = b.sub(count, 1)
        self._keys(self.tensors.pointer("k", {**at, "d3": key}), b.mul(steps, STEP // amx.ROWS), last)
        self._values(self.tensors.pointer("v", {**at, "d3": key}), b.mul(steps, STEP // 2), last)

    def _keys(self, first: Value, tiles: Value, last: Value) -> None:
        b, t = self.b, self.tensors
        d, _ = self.areas.blocking.channels
        with b.loop(b.index(0), tiles) as tile:
            positions = [b.minimum(b.add(b.mul(tile.index, amx.ROWS), r), last) for r in range(amx.ROWS)]
            lines = [t.step("k", first, "d3", p) for p in positions]
            line = b.mul(tile.index, d // STEP)
            with b.loop(b.index(0), b.index(d // STEP)) as step:
                rows = [self._pairs(t.step("k", p, "d4", b.mul(step.index, STEP))) for p in lines]
                place = self._tile(self.areas.key_panels, b.add(line, step.index))
                for r, pairs in enumerate(transpose(b, rows)):
                    b.store(pairs, b.element_pointer(place, b.index(r * LANES), "i32"))

    def _pairs(self, pointer: Value) -> Value:
        b, to = self.b, vector_type(LANES, "i32")
        elements = b.load(pointer, vector_type(STEP, "i16"))
        return b.emit(f"vector.bitcast {elements.name} : {elements.type} to {to}", to)

    def _values(self, first: Value, pairs: Value, last: Value) -> None:
        b, t = self.b, self.tensors
        _, e = self.areas.blocking.channels
        tiles = e // LANES
        wide, zero = vector_type(STEP, "i16"), b.constant(0, "i16", LANES)
        order = ", ".join(f"{i}, {LANES + i}" for i in range(LANES))
        with b.loop(b.index(0), pairs) as pair:
            lines, there = [], []
            for position in (b.mul(pair.index, 2), b.add(b.mul(pair.index, 2), 1)):
                lines.append(t.step("v", first, "d3", b.minimum(position, last)))
                there.append(b.compare("arith.cmpi", "sle", position, last))
            step, row = b.div(pair.index, amx.ROWS), b.rem(pair.index, amx.ROWS)
            for c in range(tiles):
                rows = [b.load(t.step("v", p, "d5", b.index(c * LANES)), zero.type) for p in lines]
                x, y = (b.select(is_there, row, zero) for is_there, row in zip(there, rows, strict=True))
                both = b.emit(f"vector.shuffle {x.name}, {y.name} [{order}] : {x.type}, {y.type}", wide)
                place = self._tile(self.areas.value_panels, b.add(b.mul(step, tiles), c))
                b.store(both, b.element_pointer(place, b.mul(row, STEP), "i16"))

    def _tile(self, panels: Value, number: Value) -> Value:
        return self.b.element_pointer(panels, self.b.mul(number, TILE_BYTES), "i8")
