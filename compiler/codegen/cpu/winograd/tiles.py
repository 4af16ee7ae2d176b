"""Where tiles lie: from a tile's number to its place among the outputs and to the 4x4 inputs that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.threads import Share
from effc.compiler.codegen.cpu.winograd.form import OUTPUTS, SIDE, TAPS
from effc.compiler.codegen.cpu.winograd.plan import Plan
from effc.compiler.ir.expr import Expr, const, product


@dataclass
class Patch:
    """The inputs of one tile. ``rows``/``columns``: offsets of its four lines each way from ``base``."""

    tiles: Tiles
    base: Value
    rows: list[Value]
    columns: list[Value]

    def pointers(self, channel: Value) -> list[list[Value]]:
        """The 4x4 addresses at an offset of channels."""
        b = self.tiles.b
        at = b.element_pointer(self.base, channel, "f32")
        lines = [b.element_pointer(at, row, "f32") for row in self.rows]
        return [[b.element_pointer(line, column, "f32") for column in self.columns] for line in lines]

    @contextmanager
    def channels(self, step: int) -> Iterator[tuple[Value, Value]]:
        """Loops over all channels, ``step`` at a time: the offset in the input, and the number of the channel."""
        b, form = self.tiles.b, self.tiles.plan.form
        with ExitStack() as stack:
            offset, number = b.index(0), b.index(0)
            for position, k in enumerate(form.channels):
                last = position == len(form.channels) - 1
                size = form.nest.size(k).constant
                assert size is not None, "channels have known sizes"
                loop = stack.enter_context(b.loop(b.index(0), b.index(size), step if last else 1))
                offset = b.add(offset, b.mul(loop.index, self.tiles.value(form.input_stride(k))))
                number = b.add(b.mul(number, size), loop.index)
            yield offset, number


class Tiles:
    """Tiles are numbered row by row, image by image."""

    def __init__(self, b: Builder, plan: Plan, share: Share) -> None:
        self.b, self.plan, self.share = b, plan, share
        self.total = self.value(product(plan.counts))
        self.group: dict[str, Value] = {}

    def value(self, expr: Expr) -> Value:
        return scalar_expr(self.b, expr, self.share.symbols)

    def select(self, group: Value) -> None:
        """Group number ``group`` is at hand: ``self.group`` are its dims."""
        b, form = self.b, self.plan.form
        for i in reversed(form.groups):
            size = self.value(form.nest.size(i))
            self.group[f"d{i}"] = b.rem(group, size)
            group = b.div(group, size)

    def at(self, tile: Value) -> dict[str, Value]:
        """The outer dims of a tile of the group at hand, and its first output."""
        b, form = self.b, self.plan.form
        dims = [*form.outer, form.height[0], form.width[0]]
        found = dict(self.group)
        for i, count in reversed(list(zip(dims, self.plan.counts, strict=True))):
            size = self.value(count)
            position = b.rem(tile, size) if i != dims[0] else tile
            tile = b.div(tile, size)
            found[f"d{i}"] = b.mul(position, OUTPUTS) if i in dims[-2:] else position
        return found

    def patch(self, at: dict[str, Value]) -> Patch:
        """The inputs of the tile at ``at``. Of an odd size the last tile has no fourth line: it reads the third again, which only
        outputs that do not exist depend on.
        """
        b, nest, form = self.b, self.plan.form.nest, self.plan.form
        sums = {f"d{k}": const(0) for k in nest.reduction}
        address = nest.address(nest.left.load).substitute(sums)
        offset = scalar_expr(b, address, {**self.share.symbols, **at})
        base = b.element_pointer(self.share.pointer(nest.left.operand), offset, "f32")
        lines: list[list[Value]] = []
        for place, tap in (form.height, form.width):
            stride = self.value(form.input_stride(tap))
            size = nest.size(place)
            indices = [b.index(i) for i in range(SIDE)]
            if size.constant is None or size.constant % OUTPUTS:
                last = b.sub(b.add(self.value(size), TAPS - 2), at[f"d{place}"])
                indices[-1] = b.minimum(indices[-1], last)
            lines.append([b.mul(i, stride) for i in indices])
        return Patch(self, base, *lines)

    def exists(self, at: dict[str, Value], dim: int, output: int) -> Value | None:
        """Whether a tile's second output along ``dim`` exists; None where it always does."""
        size = self.plan.form.nest.size(dim)
        if output == 0 or (size.constant is not None and size.constant % OUTPUTS == 0):
            return None
        return self.b.compare("arith.cmpi", "slt", self.b.add(at[f"d{dim}"], output), self.value(size))
