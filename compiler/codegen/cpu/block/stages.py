"""The stages of a block as the target's kernels read them: products of constant factors, and plain loops.

Whatever a stage is, it is emitted as the code of a kernel of its own: a function over a run of units, of which each line has as many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from effc.compiler.codegen.cpu.block.lines import Between, Lines, Reach, footprint, lined, reach
from effc.compiler.codegen.cpu.contraction.amx import AmxKernel
from effc.compiler.codegen.cpu.contraction.borders import Border
from effc.compiler.codegen.cpu.contraction.cast import cast
from effc.compiler.codegen.cpu.contraction.form import form
from effc.compiler.codegen.cpu.contraction.kernel import Kernel
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.shape import Shape
from effc.compiler.codegen.cpu.loops.nest import emit_lines
from effc.compiler.codegen.cpu.loops.plan import Plan, plan_lines
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder
from effc.compiler.codegen.cpu.threads import Share
from effc.compiler.ir.spec import KernelSpec, Schedule

_KERNELS: dict[str, type[Kernel]] = {"tiles": Kernel, "amx": AmxKernel}


@dataclass(frozen=True)
class Stage:
    """``nest``: of a product, ``plan``: of loops, whose first ``first`` dims number ``lines``. ``tiled``: the lines are rows, of which a
    product has tiles; else a line is a run of its units. ``spec``: what both were read from; its operands are the block's ``operands``.
    """

    spec: KernelSpec
    operands: tuple[int, ...]
    lines: Lines
    first: int
    nest: Nest | None = None
    plan: Plan | None = None
    tiled: bool = False

    @property
    def body(self) -> KernelSpec:
        """The nest whose dims the other fields speak of."""
        if self.nest is not None:
            return self.nest.spec
        assert self.plan is not None, "a stage is a product or loops"
        return self.plan.spec

    def touched(self, *ops: str) -> list[int]:
        """The block's operands that are loaded or stored, or both."""
        return [self.operands[i["operand"]] for i in self.spec.body if i.op in ops]

    def accesses(self, operand: int) -> Iterator[tuple[str, int]]:
        """``(op, instruction)`` of each load and store of the block's ``operand``."""
        for i, instr in enumerate(self.body.body):
            if instr.op in ("load", "store") and self.operands[instr["operand"]] == operand:
                yield instr.op, i

    def footprint(self, instr: int) -> tuple[object, ...] | None:
        """Which elements each line's load or store touches: equal for two that touch the same (`lines.footprint`)."""
        return footprint(self.body, self.first, self.body.body[instr]["address"])

    def reach(self, instr: int, between: Between) -> Reach | str:
        """The lines of an intermediate that a load or store touches."""
        masked: Sequence[Border] = self.nest.borders if self.nest is not None and instr == self.nest.left.load else ()
        return reach(self.body, self.first, self.lines, self.body.body[instr]["address"], between, masked)


def own(stage: KernelSpec) -> tuple[KernelSpec, tuple[int, ...]]:
    """A stage with the operands alone that it touches, and which of the block's these are: equal layers are then equal."""
    numbers = tuple(dict.fromkeys(i["operand"] for i in stage.body if i.op in ("load", "store")))
    number = {old: new for new, old in enumerate(numbers)}
    body = tuple(
        replace(i, attributes=tuple((k, number[v] if k == "operand" else v) for k, v in i.attributes))
        if i.op in ("load", "store")
        else i
        for i in stage.body
    )
    return replace(stage, operands=tuple(stage.operands[i] for i in numbers), body=body), numbers


def read_stage(stage: KernelSpec, lines: Lines, tiled: bool, target: Target) -> Stage | str:
    """A stage whose factor has the role ``packed``, or the reason why it cannot be one. ``tiled``: ``lines`` are rows, of which products
    have tiles.
    """
    spec, numbers = own(stage)
    found = _read(replace(spec, schedule=Schedule()), lines, tiled, target)
    return found if isinstance(found, str) else replace(found, spec=spec, operands=numbers)


@lru_cache(maxsize=1024)
def _read(spec: KernelSpec, lines: Lines, tiled: bool, target: Target) -> Stage | str:
    if any(instr.op == "check" for instr in spec.body):
        return "a stage that may raise an error"
    if spec.symbols or any(d.size.constant is None for d in spec.dims):
        return "a size that is known only at run time"
    if spec.template == "loops":
        return _loops(spec, lines, target)
    if spec.template != "contraction":
        return f"{spec.template} cannot be a stage"
    return _tiles(spec, lines, target) if tiled else _product(spec, lines, target)


def _loops(spec: KernelSpec, lines: Lines, target: Target) -> Stage | str:
    found = lined(spec, lines)
    if isinstance(found, str):
        return found
    plan = plan_lines(found[0], target, found[1])
    return plan if isinstance(plan, str) else Stage(spec, (), lines, found[1], plan=plan)


def _product(spec: KernelSpec, lines: Lines, target: Target) -> Stage | str:
    found = lined(spec, lines)
    if isinstance(found, str):
        return found
    nest = cast(found[0], target, lines=found[1])
    if isinstance(nest, str):
        return nest
    reason = _unfit(nest, target, ("tiles",))
    return reason or Stage(spec, (), lines, found[1], nest=nest)


def _tiles(spec: KernelSpec, lines: Lines, target: Target) -> Stage | str:
    nest = cast(spec, target)
    if isinstance(nest, str):
        return nest
    reason = _unfit(nest, target, ("tiles", "amx"))
    if reason:
        return reason
    if nest.row is None:
        return "a single row is not shared out among threads"
    if nest.row != 0 or nest.outer or nest.wise or nest.borders or nest.size(nest.row).constant != lines.count:
        return "a product of other rows than those of the first"
    return Stage(spec, (), lines, 1, nest=nest, tiled=True)


def _unfit(nest: Nest, target: Target, forms: Sequence[str]) -> str | None:
    """Why a product cannot be a stage, or None."""
    sums = nest.spec.body[nest.contract].dtype
    if sums not in ("f32", "i32"):
        return "sums that are neither float32 nor of bytes"
    if not nest.right.packed:
        return "a factor that is not constant"
    kind = form(nest, target)
    if kind == "codes":
        return "codes become floats once for all rows, in a block once for each tile of them"
    if kind not in forms:
        return "tile registers take more rows than a line has"
    return "bytes by tile registers" if sums == "i32" and kind == "amx" else None


class StageCode:
    """Emits ``stage`` into a module that ``builder`` writes."""

    def __init__(self, stage: Stage, target: Target, builder: Builder) -> None:
        self.stage, self.target, self.b = stage, target, builder
        self.kernel: Kernel | None = None
        if stage.nest is not None:
            shape = Shape.of(stage.spec, stage.nest, stage.spec.schedule, target)
            self.kernel = _KERNELS[form(stage.nest, target)](stage.nest, shape, target, builder)

    def units(self) -> int:
        """Of a line; of a tile of rows where the lines are these."""
        if self.kernel is None:
            return 1
        nest, total = self.kernel.nest, self.kernel.panels().constant or 0
        if self.stage.tiled:
            return total
        for i in nest.outer[nest.lines :]:
            total *= nest.size(i).constant or 0
        return total * (self.kernel.row_tiles().constant or 0)

    def emit(self, share: Share) -> None:
        """The units ``[share.lo, share.hi)``."""
        if self.kernel is not None:
            self.kernel.body(share)
            return
        assert self.stage.plan is not None, "a stage is a product or loops"
        emit_lines(self.b, self.stage.plan, self.stage.first, self.target, share)
