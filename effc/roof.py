"""The roof of this machine, measured: its peak, and how fast it reads from each level of memory."""

from __future__ import annotations

import math
from functools import lru_cache

from effc.compiler.codegen.cpu.target import Target
from effc.costmodel.hardware import describe
from effc.reporting.bounds import Level, Roof
from effc.speed import Probe

_RUNS = 20


@lru_cache(maxsize=4)
def host_roof(threads: int) -> Roof:
    """`measured_roof`, measured once."""
    return measured_roof(threads)


def measured_roof(threads: int) -> Roof:
    """Of so many threads together, in half a second. L1 is left out, as kernels read their operands from beyond it. LoweringError: no code
    can be made for this machine, so its roof must be given.
    """
    target = Target.host()
    probe = Probe(target)
    found = describe(target.key, target.vector_bytes, lambda: None)
    speed = probe.speed(threads, _RUNS)
    levels = []
    if found.l2:  # private to a core: one thread is timed, whose calls do not wait for those of another
        levels.append(Level("L2", threads * found.l2, threads * probe.reading(1, found.l2 // 2, _RUNS)))
    if found.l3 > 8 * threads * found.l2:
        levels.append(Level("L3", found.l3, probe.reading(threads, 4 * found.l2, _RUNS)))
    return Roof(speed.flops, (*levels, Level("memory", math.inf, speed.bandwidth)))
