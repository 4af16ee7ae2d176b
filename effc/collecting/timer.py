"""Timing a kernel's schedules against each other, in memory laid out as a model leaves it."""

from __future__ import annotations

from collections.abc import Sequence

from effc.collecting import windows
from effc.collecting.found import Found
from effc.collecting.native import Cursor, Timed
from effc.collecting.operands import Store
from effc.collecting.reference import reference
from effc.collecting.windows import Reference, TooNoisy
from effc.compiler.build import objects
from effc.compiler.codegen.cpu import schedules
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import EffcError
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.toolchain import toolchain
from effc.costmodel.hardware import Hardware
from effc.costmodel.traces import Timing
from effc.runtime.cache import Cache
from effc.runtime.elf import load


class KernelTimer:
    """On ``hardware``, which is this machine; ``cache`` keeps the code of kernels. By `windows.measure`, one kernel's schedules in turn."""

    def __init__(self, hardware: Hardware, cache: Cache, seed: int, plan: windows.Plan = windows.USUAL) -> None:
        self._cache, self._target, self._plan = cache, Target.host(), plan
        self._store = Store(hardware, seed)
        self._references: dict[int, Reference] = {}

    def alternatives(self, spec: KernelSpec) -> list[KernelSpec]:
        """Its own schedule first. Those whose weights can be laid out without the model: where zeros are left out, only the schedule that
        the model runs.
        """
        try:
            found = schedules.alternatives(spec, self._target)
        except EffcError:
            return [spec]
        return [spec, *(s for s in found if s.schedule != spec.schedule and not s.schedule.get("sparse"))]

    def code(self, chosen: Sequence[KernelSpec]) -> dict[str, bytes]:
        """Of each, by its digest."""
        return objects({s.digest(): s for s in chosen}, self._target, self._cache, toolchain())[0]

    def timings(self, found: Found, chosen: Sequence[KernelSpec], threads: int) -> list[Timing | TooNoisy]:
        """Of ``found`` under each of the schedules ``chosen``, called with so many threads."""
        code, seen, cursor = self.code(chosen), found.seen, Cursor()
        memory = self._store.activations(found.spec, found.symbols, seen)
        rivals = []
        for spec in chosen:
            known = seen if spec.schedule == found.spec.schedule else {}
            placed = {**{i: [t] for i, t in memory.items()}, **self._store.scheduled(spec, found.symbols, known)}
            operands = [placed[i] for i in range(len(spec.operands))]
            rivals.append(Timed(load(code[spec.digest()]), spec, operands, found.symbols, threads, cursor))
        if threads not in self._references:
            self._references[threads] = reference(self._cache, threads)
        return windows.measure([r.run for r in rivals], self._references[threads], self._plan)
