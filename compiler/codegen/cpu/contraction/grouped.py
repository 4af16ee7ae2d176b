"""Grouped convolutions of few channels a group: the lanes of a vector are the channels of several groups.

With 4 channels in and out of each group, a vector of one group's outputs would fill a quarter of its lanes. Here it holds those of four
groups, as in a depthwise convolution, and meets the vector of the same input channels once for each channel ``c`` of a group: permuted, so
that each lane has channel ``c`` of its group. A permutation is shared by all taps along the row that read the place (AVX-512 permutes on a
port that multiplies too).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from effc.compiler.codegen.cpu.contraction.form import lanes_of
from effc.compiler.codegen.cpu.contraction.places import places
from effc.compiler.codegen.cpu.contraction.roles import Nest, rename
from effc.compiler.codegen.cpu.contraction.tile import Accumulators, Tile
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Value
from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.ir.spec import Dim, Instr

#: Steps that are written out: of all taps along a row, for all channels of a group.
_MOST_STEPS = 32


def across_groups(nest: Nest, target: Target) -> Nest | None:
    """``nest`` with groups and their outputs as one column; None where they do not share vectors."""
    if nest.wise or not nest.right.packed or nest.right.quantized or nest.borders or len(nest.batch) != 1:
        return None
    (group,), column, c = nest.batch, nest.column, nest.reduction[-1:]
    lanes = lanes_of(nest, target)
    if column is None or not c or nest.spec.body[nest.contract].dtype[0] != "f":
        return None
    channels, groups = nest.size(column).constant, nest.size(group).constant
    if groups is None or channels is None or channels < 2 or 2 * channels > lanes or lanes % channels:
        return None
    left = nest.left.load
    steps = [nest.stride(left, k).constant for k in (nest.row, *nest.reduction[-2:-1], group, *c)]
    taps = nest.size(nest.reduction[-2]).constant if len(nest.reduction) > 1 else 1
    if nest.size(c[0]).constant != channels or None in steps or steps[-2:] != [channels, 1]:
        return None
    if taps is None or taps * channels > _MOST_STEPS or not _one_column(nest, group, column, channels):
        return None
    name = f"d{column}"
    body = list(nest.spec.body)
    address = nest.address(left).substitute({f"d{c[0]}": const(0)}) + var(name)
    body[left] = Instr(
        "load", body[left].args, body[left].dtype, (("address", address), ("operand", nest.left.operand))
    )
    dims = list(nest.spec.dims)
    dims[column] = Dim(const(groups * channels), "parallel")
    keep = [i for i in range(len(dims)) if i != group]
    spec = replace(nest.spec, body=tuple(body))
    spec = rename(spec, keep, {f"d{group}": const(0)}, [dims[i] for i in keep])

    def moved(dim: int) -> int:
        return dim - (dim > group)

    return replace(
        nest,
        spec=spec,
        row=None if nest.row is None else moved(nest.row),
        column=moved(column),
        outer=tuple(moved(i) for i in nest.outer if i != group),
        batch=(),
        reduction=tuple(moved(i) for i in nest.reduction),
        wise=True,
        channels=channels,
    )


def taps_of(nest: Nest) -> int:
    """Taps of a row of the window, for a nest of `across_groups`."""
    taps = nest.size(nest.reduction[-2]).constant if len(nest.reduction) > 1 else 1
    assert taps is not None, "across_groups has seen to it"
    return taps


def places_of(nest: Nest, rows: int) -> dict[int, list[tuple[int, int]]]:
    """``(row, tap)`` of all that a tile of ``rows`` reads, by the offset of the place in the left factor."""
    return places(nest, rows, nest.reduction[-2] if len(nest.reduction) > 1 else None)


def _one_column(nest: Nest, group: int, column: int, channels: int) -> bool:
    """Whether all but the left factor walk groups and their columns as one dimension, and write it contiguously."""
    for i, instr in enumerate(nest.spec.body):
        for _, value in instr.attributes:
            if not isinstance(value, Expr) or i == nest.left.load:
                continue
            a, b = value.coefficient(f"d{group}"), value.coefficient(f"d{column}")
            if a is None or b is None or a != b * channels:
                return False
    return True


class GroupedTile(Tile):
    """Columns are channels of several groups; the innermost dimensions of K are the taps along the row, if any, and a group's channels."""

    def _sum(self, depth: int, left: list[Value], right: Value, total: Accumulators) -> Accumulators:
        if depth < len(self.sizes) - 2:
            return super()._sum(depth, left, right, total)
        return self._window(left[0], right, list(total))

    def _window(self, left: Value, right: Value, total: Accumulators) -> Accumulators:
        """All taps along the row, channel by channel, and for each of these place by place."""
        b, nest = self.b, self.step.nest
        taps, found = taps_of(nest), places_of(nest, self.rows)
        along = self.right_strides[-2].constant or 0 if taps > 1 else 0
        inside = self._value(self.right_strides[-1])
        for c in range(nest.channels):
            at = self._at(right, b.mul(inside, c), self._right_element)
            starts = [self._at(at, b.index(tap * along), self._right_element) for tap in range(taps)]
            columns = [[self._column(start, j) for j in range(self.vectors)] for start in starts]
            order = self._lanes(c)
            for place, products in found.items():
                for j in range(self.vectors):
                    start = self._at(left, b.index(place + j * self.step.lanes), self._left_element)
                    loaded = self.step.left(start, 1, b.index(0), self.masks[j] if self.masks else None)
                    picked = [b.shuffle(value, order) for value in loaded]
                    for row, tap in products:
                        k = row * self.vectors + j
                        total[k] = self.step.accumulate(total[k], picked, columns[tap][j])
        return total

    def _lanes(self, c: int) -> Sequence[int]:
        channels = self.step.nest.channels
        return [lane - lane % channels + c for lane in range(self.step.lanes)]
