"""The kernel of a block: every thread takes tiles of lines through all stages, one after the other.

A stage is compiled as a function over a run of its units. The lines of an intermediate that a tile asks for lie in the thread's own
scratch memory, one after the other; a stage sees them at an address moved back by the lines before, so that the addresses of its spec hold.
A last stage that reduces all lines leaves the result of each in memory that all threads share; one of them does the rest when all are done.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from effc.compiler.codegen.cpu.access import memory_type
from effc.compiler.codegen.cpu.block.fold import Fold
from effc.compiler.codegen.cpu.block.lines import Between, Lines
from effc.compiler.codegen.cpu.block.needs import Need
from effc.compiler.codegen.cpu.block.plan import MOST_THREADS, Plan
from effc.compiler.codegen.cpu.block.stages import StageCode, own
from effc.compiler.codegen.cpu.contraction.rows import place
from effc.compiler.codegen.cpu.emit import kernel_name
from effc.compiler.codegen.cpu.loops.nest import emit_lines
from effc.compiler.codegen.cpu.loops.plan import plan_lines
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import I64, PTR, Builder, Value, vector_type
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.expr import const
from effc.compiler.ir.spec import KernelSpec


@dataclass(frozen=True)
class _Tile:
    """Lines ``[first, end)`` of image ``image`` of the result; ``fresh``: the thread has none of the lines before."""

    image: Value
    first: Value
    end: Value
    fresh: Value


class BlockKernel:
    """Emits ``spec``, of which ``plan`` holds the parts and sizes."""

    def __init__(self, spec: KernelSpec, plan: Plan, target: Target, cycles: int) -> None:
        """``cycles``: an estimate of what a line of the result costs, or a tile of rows."""
        self.spec, self.plan, self.target, self.cycles = spec, plan, target, cycles
        self.b = Builder()
        self.stages = [StageCode(stage, target, self.b) for stage in (*plan.stages, *(plan.sums or ()))]

    def text(self) -> str:
        for number in range(len(self.stages)):
            self._stage(number)
        units = const(self.plan.units.count)
        end = None if self.plan.fold is None else partial(self._end, self.plan.fold)
        with parallel_kernel(self.b, self.spec, units, const(self.cycles), finish=end, most=MOST_THREADS) as share:
            self._walk(share)
        return self.b.text()

    def _end(self, fold: Fold, share: Share) -> None:
        """What follows all lines."""
        spec, numbers = own(fold.end)
        plan = plan_lines(spec, self.target, 0)
        assert not isinstance(plan, str), "there are several lines"
        b = self.b
        whole = Share(b, spec, share.slots, b.index(0), b.index(1), b.index(0), share.slots)
        whole.load_slots(numbers)
        emit_lines(b, plan, 0, self.target, whole)

    def _stage(self, number: int) -> None:
        """A function ``(slots, first unit, end, a pointer an intermediate)``."""
        b, between, stage = self.b, self.plan.between, self.stages[number].stage
        arguments = [PTR, I64, I64, *[PTR] * len(between)]
        with b.function(self._name(number), arguments, private=True) as (slots, lo, hi, *pointers):
            share = Share(b, stage.spec, slots, lo, hi, b.index(0), slots)
            share.load_slots(stage.operands)
            for link, pointer in zip(between, pointers, strict=True):
                if link.operand in stage.operands and not link.shown:
                    share.place(stage.operands.index(link.operand), pointer)
            self.stages[number].emit(share)

    def _name(self, number: int) -> str:
        return f"{kernel_name(self.spec)}_stage{number}"

    # -- the walk -----------------------------------------------------------------------------------------------------
    def _walk(self, share: Share) -> None:
        """Units ``[share.lo, share.hi)`` through all stages; where slices are added up, through each in turn."""
        b, last = self.b, len(self.plan.stages) - 1
        homes = [self._home(share, i) for i in range(len(self.plan.between))]
        if self.plan.sums is None:
            self._images(share, homes, b.index(0), last)
            return
        end, images = self.plan.slices - 1, self.plan.units.images
        self._images(share, homes, b.index(0), last + 1)
        with b.loop(b.index(1), b.index(end)) as slices:
            self._images(share, homes, b.mul(slices.index, images), last + 2)
        self._images(share, homes, b.index(end * images), last)

    def _images(self, share: Share, homes: list[Value], behind: Value, last: int) -> None:
        """Image by image, a tile at a time, of those ``behind`` so many. ``last``: which code the last stage has."""
        b, height = self.b, self.plan.units.height
        stop = b.div(b.add(share.hi, height - 1), height)
        with b.loop(b.div(share.lo, height), stop) as images:
            before = b.mul(images.index, height)
            first, end = b.maximum(b.sub(share.lo, before), 0), b.minimum(b.sub(share.hi, before), height)
            with b.loop(first, end, self.plan.tile) as lines:
                stop = b.minimum(b.add(lines.index, self.plan.tile), end)
                fresh = b.compare("arith.cmpi", "eq", lines.index, first)
                tile = _Tile(b.add(behind, images.index), lines.index, stop, fresh)
                self._tile(share, tile, homes, last)

    def _home(self, share: Share, number: int) -> Value:
        """Where a thread's first line of an intermediate lies."""
        b, plan, link = self.b, self.plan, self.plan.between[number]
        if link.shown:
            return share.pointer(link.operand)
        elements = plan.share_elements()[number]
        offset = b.add(b.mul(share.index, elements), plan.spare * link.stride)
        return b.element_pointer(share.pointer(link.operand), offset, self._element(link))

    def _tile(self, share: Share, tile: _Tile, homes: list[Value], last: int) -> None:
        b, plan = self.b, self.plan
        starts: list[Value] = []
        pointers: list[Value] = []
        for need, link, home in zip(plan.by_between, plan.between, homes, strict=True):
            first, start = self._kept(tile, need, link, home)
            starts.append(start)
            lines = self._lines_before(tile.image, first, link.lines)
            pointers.append(b.element_pointer(home, b.sub(b.index(0), b.mul(lines, link.stride)), self._element(link)))
        for number, need, first in zip((*range(len(starts)), last), plan.by_stage, (*starts, tile.first), strict=True):
            end = self._limit(need, b.sub(tile.end, 1), need.high + 1, self._lines(number))
            lo, hi = first, end
            self._call(number, share.slots, [*self._units(number, tile.image, lo, hi), *pointers])

    def _kept(self, tile: _Tile, need: Need, link: Between, home: Value) -> tuple[Value, Value]:
        """The first line of an intermediate that the tile asks for, and the first that is not there yet; those that are, moved to
        ``home``.
        """
        b, lines = self.b, self._lines_of(link)
        first = self._limit(need, tile.first, need.low, lines)
        if not need.kept:
            return first, first
        before = self._limit(need, b.sub(tile.first, self.plan.tile), need.low, lines)
        done = b.maximum(first, self._limit(need, b.sub(tile.first, 1), need.high + 1, lines))
        start = b.select(tile.fresh, first, done)
        item = self.plan.item(link) * link.stride
        source = b.element_pointer(home, b.mul(b.sub(first, before), item), "i8")
        self._move(home, source, b.mul(b.sub(start, first), item))
        return first, start

    def _move(self, to: Value, source: Value, count: Value) -> None:
        """``count`` bytes from ``source`` to ``to``, which lies before it, by whole vectors: what is behind them is computed after."""
        b, size = self.b, self.target.vector_bytes
        with b.loop(b.index(0), count, size) as loop:
            vector = b.load(b.element_pointer(source, loop.index, "i8"), vector_type(size, "i8"))
            b.store(vector, b.element_pointer(to, loop.index, "i8"))

    def _limit(self, need: Need, line: Value, offset: int, lines: int) -> Value:
        """``need.step * line + offset``, or the next line that exists or would."""
        b = self.b
        return b.minimum(b.maximum(b.add(b.mul(line, need.step), offset), 0), lines)

    # -- lines and units ----------------------------------------------------------------------------------------------
    def _lines(self, number: int) -> int:
        """Of an image of a stage."""
        return self.plan.units.height if self.plan.tiled else self.stages[number].stage.lines.height

    def _lines_of(self, link: Between) -> int:
        return self.plan.units.height if self.plan.tiled else link.lines.height

    def _lines_before(self, image: Value, line: Value, lines: Lines) -> Value:
        """Lines of all images before one; rows, where lines are tiles of these."""
        if self.plan.tiled:
            return self._row(line)
        return self.b.add(self.b.mul(image, lines.height), line)

    def _row(self, tile: Value) -> Value:
        b, units = self.b, self.plan.units.height
        return place(b, b.index(self.plan.lines.height), b.index(units), tile)[0]

    def _units(self, number: int, image: Value, lo: Value, hi: Value) -> list[Value]:
        """The units of a stage that are its lines ``[lo, hi)`` of an image."""
        b, stage, each = self.b, self.stages[number].stage, self.stages[number].units()
        if not stage.tiled:
            lo, hi = (self._lines_before(image, line, stage.lines) for line in (lo, hi))
        return [b.mul(lo, each), b.mul(hi, each)]

    def _element(self, link: Between) -> str:
        return memory_type(self.spec.operands[link.operand].dtype)

    def _call(self, number: int, slots: Value, arguments: list[Value]) -> None:
        given = [slots, *arguments]
        types = ", ".join(a.type for a in given)
        self.b.line(f"llvm.call @{self._name(number)}({', '.join(a.name for a in given)}) : ({types}) -> ()")
