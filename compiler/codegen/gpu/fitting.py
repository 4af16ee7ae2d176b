"""KernelSpec → compiled launches that fit the GPU: a tiling whose code spills registers, or needs too much shared memory, gives way to the
next one by the count of cycles, as one does that triton refuses. What code needs is known once triton has compiled it, without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from effc.compiler.codegen.gpu.compile import Compiled, compile_launch
from effc.compiler.codegen.gpu.contraction.roles import find
from effc.compiler.codegen.gpu.contraction.schedule import candidates
from effc.compiler.codegen.gpu.emit import emit
from effc.compiler.codegen.gpu.launch import Emitted
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec

#: Tilings that are compiled at most: a second or two each.
_TRIES = 4


def compile_fitting(spec: KernelSpec, target: GpuTarget, *, aligned: bool) -> tuple[Emitted, list[Compiled]]:
    """The launches of ``spec`` and their code. Of tilings that all spill, the one that spills least; a schedule of the spec's own is kept.

    LoweringError: no emitter or triton takes it, or none of the tilings fits.
    """
    best: tuple[Emitted, list[Compiled]] | None = None
    refusal: LoweringError | None = None
    for tried in _scheduled(spec, target):
        emitted = emit(tried, target, aligned=aligned)
        try:
            made = [compile_launch(launch, target) for launch in emitted.launches]
        except LoweringError as error:
            refusal = refusal or error
            continue
        if best is None or _spilled(made) < _spilled(best[1]):
            best = emitted, made
        if not _spilled(made):
            break
    if best is None:
        raise refusal or LoweringError("no schedule for this kernel")
    return best


def _spilled(made: list[Compiled]) -> int:
    """Bytes of the threads' frames."""
    return sum(one.frame for one in made)


def _scheduled(spec: KernelSpec, target: GpuTarget) -> Iterator[KernelSpec]:
    """``spec`` as it is, and a contraction on tensor cores with other tilings too; the last one without descriptors."""
    yield spec
    roles = find(spec) if spec.template == "contraction" and not spec.schedule.parameters else "its schedule is chosen"
    if not isinstance(roles, str):
        offered = candidates(roles, target, _TRIES)
        plain = candidates(roles, replace(target, descriptors=False), 1)
        for schedule in [*offered[1:], *(s for s in plain if s not in offered)]:
            yield replace(spec, schedule=schedule)
