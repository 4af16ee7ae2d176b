"""Schedules of the templates that have a choice, without building MLIR: what the planner and the cost model ask."""

from __future__ import annotations

from effc.compiler.codegen.cpu.attention import form as attention
from effc.compiler.codegen.cpu.contraction import schedule as contraction
from effc.compiler.codegen.cpu.contraction.cast import cast
from effc.compiler.codegen.cpu.contraction.packing import Packing, packing, repacked
from effc.compiler.codegen.cpu.contraction.roles import find
from effc.compiler.codegen.cpu.sparse import choice as sparse
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.winograd import choice as winograd
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec, Schedule

__all__ = ["Packing", "alternatives", "candidates", "default_schedule", "packing", "supports"]

#: Most schedules that are worth measuring for one kernel.
MOST = 24


def supports(spec: KernelSpec, target: Target) -> str | None:
    """None where the template's emitter makes a kernel of ``spec``, else the reason why it does not."""
    if spec.template == "attention":
        return attention.supports(spec, target)
    if spec.template != "contraction":
        return None
    nest = find(spec)
    return nest if isinstance(nest, str) else None


def default_schedule(spec: KernelSpec, target: Target, wanted: Schedule | None = None) -> Schedule:
    """``wanted`` where the template has it, else the schedule of the lowest estimate; LoweringError where ``supports`` says no.

    ``mr`` x ``nr``: rows and columns of the register tile; ``order``: whether row tiles or panels of columns are outside; ``touch``:
    whether the epilogue's lines are fetched before the sums; ``unroll``: steps of the sum in a loop body. Of a packed factor the
    layout, and so ``nr`` and the method, is fixed: take the schedule from ``packing``, which chooses it.
    """
    if spec.template == "attention":
        return Schedule()
    nest = cast(spec, target)
    if isinstance(nest, str):
        raise LoweringError(f"this contraction is not supported: {nest}")
    return contraction.chosen(nest, target, wanted)


def candidates(spec: KernelSpec, target: Target) -> list[Schedule]:
    """The default first, then others by rising estimate, at most `MOST`; LoweringError where ``supports`` says no. A kernel that leaves out
    weights as zeros come has no other: how many come, no measurement on other data tells.
    """
    if spec.template == "attention":
        return [Schedule()]
    if spec.schedule.get("skip"):
        return [spec.schedule]
    nest = cast(spec, target)
    if isinstance(nest, str):
        raise LoweringError(f"this contraction is not supported: {nest}")
    tiles = sorted(
        contraction.tiles(nest, target), key=lambda t: (contraction.estimate(nest, target, *t), -t[0] * t[1], t)
    )
    direct = contraction.variants(nest, target, *tiles[0])
    direct += [contraction.as_schedule(nest, target, *t) for t in tiles[1:]]
    kept = sparse.chosen(spec, target, None)
    others = [*sparse.offered(spec, target), *winograd.offered(spec, target)]
    if kept is None:
        others = [*winograd.offered(spec, target), *sparse.offered(spec, target)]
    first = kept or winograd.chosen(spec, target, None)
    found = [*others, *direct] if first else [*direct[:1], *others, *direct[1:]]
    return found[:MOST]


def alternatives(spec: KernelSpec, target: Target) -> list[KernelSpec]:
    """``spec`` under each schedule that its template offers, the template's own choice first; a packed factor's size follows."""
    if spec.template != "contraction":
        return [spec]
    return [repacked(spec, schedule, target) for schedule in candidates(spec, target)]
