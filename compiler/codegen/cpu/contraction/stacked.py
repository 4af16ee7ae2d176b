"""Depthwise convolutions by instructions that sum products: a lane holds some taps of its channel, those that lie below each other.

A multiply-add takes one tap of 16 channels, each byte or bf16 widened before. ``vpdpbusd`` takes four taps, ``vpdpbf16ps`` two: the rows of
the image under the window are interleaved, channel by channel, once for each place along the row, and all products that read the place
share that (3x3: three).
"""

from __future__ import annotations

from dataclasses import replace

from effc.compiler.codegen.cpu.contraction.amx_form import is_bf16
from effc.compiler.codegen.cpu.contraction.byte_factors import is_bytes, sums_bytes
from effc.compiler.codegen.cpu.contraction.places import places
from effc.compiler.codegen.cpu.contraction.roles import Nest, drop_units
from effc.compiler.codegen.cpu.contraction.tile import Accumulators, Tile
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Value, split_type, vector_type
from effc.compiler.ir.spec import KernelSpec

#: Vectors of weights for each vector of channels: all products are written out.
_MOST_WEIGHTS = 28
#: Instructions that load and interleave the rows of one place.
_INTERLEAVING = 4


def stacked(nest: Nest, spec: KernelSpec, target: Target) -> Nest | None:
    """``nest``, of ``spec``, with the sum down the window innermost, several taps a lane; None where no instruction sums its products, or
    it has no window of two known dimensions. Weights are packed by the sums of ``spec`` in the opposite order, so these too must be
    two: where two of three are one to the nest, it is not their order that is reversed.
    """
    taps = 4 if is_bytes(nest) and sums_bytes(target) else 2 if is_bf16(nest) and target.sums_pairs else 0
    if not taps or not nest.wise or nest.channels or not nest.right.packed or len(nest.reduction) != 2:
        return None
    if sum(dim.kind == "reduction" for dim in drop_units(spec).dims) != 2:
        return None
    down, along = nest.reduction
    numbers = [nest.size(dim).constant for dim in (down, along)]
    numbers += [nest.stride(nest.left.load, dim).constant for dim in (nest.row, down, along)]
    if None in numbers or nest.stride(nest.left.load, nest.column).constant != 1:
        return None
    if any(x.tap == along and (x.place is None or x.place != nest.row) for x in nest.borders):
        return None  # such taps are left out by loops
    found = replace(nest, reduction=(along, down), stacked=taps)
    return found if weights_of(found) <= _MOST_WEIGHTS else None


def weights_of(nest: Nest) -> int:
    """Vectors of weights of a nest of `stacked`, for each vector of channels."""
    along, down = (nest.size(k).constant or 0 for k in nest.reduction)
    return along * -(-down // nest.stacked)


def instructions(nest: Nest, rows: int) -> int:
    """Vector instructions of a tile of ``rows`` and one vector of channels: products, and what interleaves their factors."""
    along, down = (nest.size(k).constant or 0 for k in nest.reduction)
    read = len(places(nest, rows, nest.reduction[0]))
    return -(-down // nest.stacked) * (along * rows + _INTERLEAVING * read)


class StackedTile(Tile):
    """K is the taps along the row, then those down the window."""

    def _reduce(self, depth: int, left: list[Value], right: Value, total: Accumulators) -> Accumulators:
        b, step, result = self.b, self.step, list(total)
        along, down = (self._value(s) for s in self.right_strides)
        groups = range(-(-self._taps_down // step.group))
        inside = self._inside()
        kept = self._kept(inside)
        for j in range(self.vectors):
            columns = [
                [
                    self._weights(
                        self._at(right, b.add(b.mul(along, tap), b.mul(down, g)), self._right_element), j, keep
                    )
                    for g, keep in enumerate(kept)
                ]
                for tap in range(self.sizes[0].constant or 0)
            ]
            for place, products in places(step.nest, self.rows, step.nest.reduction[0]).items():
                read = [(row, tap) for row, tap in products if (row, tap) not in self.outside]
                for g in groups if read else ():
                    taps = self._interleaved(left[0], place + j * step.lanes, g * step.group, j, inside)
                    for row, tap in read:
                        k = row * self.vectors + j
                        result[k] = step.accumulate(result[k], [taps], columns[tap][g])
        return result

    @property
    def _taps_down(self) -> int:
        return self.sizes[1].constant or 0

    def _inside(self) -> list[Value] | None:
        """Of each tap down the window, whether it is inside the image, in all lanes; None where all are."""
        if 1 not in self.clamped:
            return None
        b, (low, high) = self.b, self.clamped[1]
        found = []
        for tap in range(self._taps_down):
            above, below = (b.compare("arith.cmpi", p, x, b.index(tap)) for p, x in (("sle", low), ("sgt", high)))
            found.append(b.broadcast(b.op("arith.andi", above, below), self.step.lanes))
        return found

    def _kept(self, inside: list[Value] | None) -> list[Value | None]:
        """For each vector of weights along the window, which of its bf16 belong to taps ``inside`` the image; None where all may stay, as
        integers that meet zeros always may.
        """
        taps, lanes = self._taps_down, self.step.lanes
        if inside is None or self.step.group != 2:
            return [None] * -(-taps // self.step.group)
        order = [x for lane in range(lanes) for x in (lane, lanes + lane)]
        return [self.b.shuffle(inside[k], order, inside[min(k + 1, taps - 1)]) for k in range(0, taps, 2)]

    def _weights(self, right: Value, j: int, keep: Value | None) -> list[Value]:
        """A vector of weights; those of taps that are not kept are zero too: an infinite one times the zero that it meets would be NaN."""
        column = self._column(right, j)
        if keep is None:
            return column
        b, pairs = self.b, 2 * self.step.lanes
        bits = vector_type(pairs, "i16")
        (whole,) = column
        held = b.emit(f"vector.bitcast {whole.name} : {whole.type} to {bits}", bits)
        held = b.select(keep, held, b.constant(0, "i16", pairs))
        return [b.emit(f"vector.bitcast {held.name} : {bits} to {whole.type}", whole.type)]

    def _interleaved(self, left: Value, offset: int, first: int, j: int, inside: list[Value] | None) -> Value:
        """The taps from number ``first`` on that a lane holds, of ``lanes`` channels: those beyond the window or the image are zero."""
        b, step, element = self.b, self.step, self._left_element
        apart = self.left_strides[1].constant or 0
        rows: list[Value] = []
        for tap in range(first, min(first + step.group, self._taps_down)):
            mask = self.masks[j] if self.masks else None
            if inside is not None:
                mask = inside[tap] if mask is None else b.op("arith.andi", mask, inside[tap])
            rows.append(step.vector(self._at(left, b.index(offset + tap * apart), element), element, mask))
        if len(rows) == 1:
            return self._as_factor(b.cast("arith.extui", rows[0], "i32"))
        rows += [b.constant(0, element, step.lanes)] * (step.group - len(rows))
        while len(rows) > 1:
            lanes = split_type(rows[0].type)[0]
            rows = [b.shuffle(x, range(2 * lanes), y) for x, y in zip(rows[::2], rows[1::2], strict=True)]
        order = [tap * step.lanes + lane for lane in range(step.lanes) for tap in range(step.group)]
        return self._as_factor(b.shuffle(rows[0], order))

    def _as_factor(self, taps: Value) -> Value:
        """``taps`` as the instruction takes them."""
        lanes = self.step.lanes
        to = vector_type(2 * lanes, "bf16") if self.step.group == 2 else vector_type(lanes, "i32")
        return taps if taps.type == to else self.b.emit(f"vector.bitcast {taps.name} : {taps.type} to {to}", to)
