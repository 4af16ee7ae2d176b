"""KernelSpec → compiled launches that fit the GPU: a tiling whose code spills registers, or needs too much shared memory, gives way to the
next one by the count of cycles, as one does that triton refuses; so does one of which a processor holds fewer programs than was counted,
where the next is then counted faster. What code needs is known once triton has compiled it, without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from effc.compiler.codegen.gpu.compile import Compiled, compile_launch
from effc.compiler.codegen.gpu.contraction import schedule as contraction
from effc.compiler.codegen.gpu.contraction.roles import find
from effc.compiler.codegen.gpu.emit import emit
from effc.compiler.codegen.gpu.launch import Emitted
from effc.compiler.codegen.gpu.occupancy import resident_blocks
from effc.compiler.codegen.gpu.pair import schedule as pairs
from effc.compiler.codegen.gpu.pair.reading import read_pair
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec, Schedule

#: Tilings that are compiled at most: a second or two each.
_TRIES = 4

#: Of one contraction under several schedules: which are expected to spill, or to be refused.
Foresight = Callable[[Sequence[KernelSpec]], Sequence[bool]]


def compile_fitting(
    spec: KernelSpec, target: GpuTarget, *, aligned: bool, foresight: Foresight | None = None
) -> tuple[Emitted, list[Compiled]]:
    """The launches of ``spec`` and their code: of the tilings that are tried the one that spills least, then the one of the lowest count. A
    schedule of the spec's own is kept. Those that ``foresight`` expects to fail come last, and only where none of the others fits and does
    not spill.

    LoweringError: no emitter or triton takes it, or none of the tilings fits; of a pair of products also where all of them spill, as each
    product alone need not.
    """
    if not aligned:  # as matrices that descriptors tell of are
        target = replace(target, descriptors=False)
    best: tuple[tuple[int, float], Emitted, list[Compiled]] | None = None
    refusal: LoweringError | None = None
    for tried, failing in _scheduled(spec, target, foresight):
        if failing and best is not None and not best[0][0]:
            break
        emitted = emit(tried, target, aligned=aligned)
        try:
            made = [compile_launch(launch, target) for launch in emitted.launches]
        except LoweringError as error:
            refusal = refusal or error
            continue
        cycles, as_counted = _recounted(tried, target, made)
        rank = _spilled(made), cycles
        if best is None or rank < best[0]:
            best = rank, emitted, made
        if not _spilled(made) and as_counted:
            break
    if best is None:
        raise refusal or LoweringError("no schedule for this kernel")
    if spec.template == "block" and not spec.schedule.parameters and best[0][0]:
        raise LoweringError(
            f"two products in one kernel spill registers in every tiling, {best[0][0]} bytes a thread in the best of them"
        )
    return best[1:]


def _spilled(made: list[Compiled]) -> int:
    """Bytes of the threads' frames."""
    return sum(one.frame for one in made)


def _recounted(spec: KernelSpec, target: GpuTarget, made: list[Compiled]) -> tuple[float, bool]:
    """The count of a product's cycles with as many programs at once as its code lets a processor hold, and whether these are as many as
    the schedule was counted with. Nothing of the kind is counted of other kernels.
    """
    roles = find(spec) if spec.template == "contraction" and not spec.schedule.get("sparse") else ""
    if isinstance(roles, str):
        return 0.0, True
    first, tiling = made[0], contraction.chosen(roles, target)
    held = resident_blocks(target, first.warps, first.registers, first.shared)
    return contraction.cost(roles, target, tiling, held), held >= contraction.together(roles, target, tiling)


def _scheduled(spec: KernelSpec, target: GpuTarget, foresight: Foresight | None) -> list[tuple[KernelSpec, bool]]:
    """``spec`` as it is, and products on tensor cores with other tilings too; those that are expected to fail, as is said of each, last."""
    offered = [replace(spec, schedule=schedule) for schedule in _offered(spec, target)]
    tried = [spec, *offered[1:]]
    if foresight is None or spec.template != "contraction" or len(offered) < 2:
        return [(one, False) for one in tried]
    return sorted(zip(tried, foresight(offered), strict=True), key=lambda one: one[1])


def _offered(spec: KernelSpec, target: GpuTarget) -> list[Schedule]:
    """Tilings by rising count, of a product also the first one without descriptors; none where there is nothing to choose."""
    if spec.schedule.parameters:
        return []
    if spec.template == "contraction":
        roles = find(spec)
        if isinstance(roles, str):
            return []
        offered = contraction.candidates(roles, target, _TRIES)
        plain = contraction.candidates(roles, replace(target, descriptors=False), 1)
        return [*offered, *(s for s in plain if s not in offered)]
    pair = read_pair(spec) if spec.template == "block" else ""
    return [] if isinstance(pair, str) else pairs.candidates(pair, target, _TRIES)
