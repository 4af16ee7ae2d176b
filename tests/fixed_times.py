"""Times of kernels that do not depend on the machine, for tests of plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.program import Program
from effc.compiler.ir.spec import ITEM_SIZE
from effc.kernel_clock import KernelClock
from effc.planning.sketch import Sketch
from effc.planning.trial import Compiled, Trial

#: Like `KernelClock.latency`.
Clocked = Callable[[KernelClock, Program, int], Latency]


def fix(patch: pytest.MonkeyPatch, clocked: Clocked) -> None:
    """Times of kernels, predicted and measured, by ``clocked``, and of whole models by their sum."""

    def predicted(sketch: Sketch) -> list[Latency]:
        calls = [(program, n) for program, _ in sketch.recording.programs for n in range(len(program.calls))]
        return [clocked(cast(KernelClock, None), program, number) for program, number in calls]

    patch.setattr(Sketch, "latencies", predicted)
    patch.setattr(KernelClock, "latency", clocked)
    patch.setattr(Trial, "seconds", by_sites)


def by_dtype(clock: KernelClock, program: Program, call: int) -> Latency:
    """A kernel takes a second, one that reads bytes half."""
    kernel = program.kernels[program.calls[call].kernel]
    return Latency(0.5 if any(o.dtype == "i8" for o in kernel.operands) else 1.0, 0.0)


def by_size(clock: KernelClock, program: Program, call: int) -> Latency:
    """A kernel takes as long as it has weights."""
    operands = program.kernels[program.calls[call].kernel].operands
    return Latency(float(sum(o.size.constant or 0 for o in operands if o.role == "packed")) + 1.0)


def by_bytes(clock: KernelClock, program: Program, call: int) -> Latency:
    """A kernel takes as long as its weights have bytes."""
    operands = program.kernels[program.calls[call].kernel].operands
    packed = (o for o in operands if o.role == "packed")
    return Latency(float(sum((o.size.constant or 0) * ITEM_SIZE[o.dtype] for o in packed)) + 1.0)


def by_sites(trial: Trial, *compiled: Compiled) -> list[float]:
    """The model takes as long as its kernels together."""
    return [sum(latency.seconds for latency in one.latencies()) for one in compiled]


def by_zeros(clock: KernelClock, program: Program, call: int) -> Latency:
    """A kernel takes a second, one that may leave zeros out half."""
    kernel = program.kernels[program.calls[call].kernel]
    return Latency(0.5 if any(o.sparsity for o in kernel.operands) else 1.0, 0.0)
