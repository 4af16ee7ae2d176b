"""How long a prediction takes: in mixed batches, as a planner asks for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from effc.compiler.ir.spec import KernelSpec
from effc.costmodel import features
from effc.costmodel.hardware import Hardware
from effc.costmodel.model.dataset import site_key
from effc.costmodel.model.predictor import Predictor
from effc.costmodel.traces import Trace

#: Candidates of a batch at most, and batches of which the fastest counts.
_MOST, _TIMES = 2000, 5


def pace(predictor: Predictor, traces: Iterable[Trace], hardware: Hardware) -> tuple[int, float, float]:
    """Candidates in the batch, and seconds of this process's cores that features, and trees, take for each. Schedules of one kernel share
    its loop nest, as those that a template offers do.
    """
    first: dict[tuple[str, ...], KernelSpec] = {}
    kernels = []
    for trace in traces:
        spec = trace.kernel
        shared = first.setdefault(site_key(trace), spec)
        kernels.append((replace(shared, operands=spec.operands, schedule=spec.schedule), trace.symbols))
        if len(kernels) == _MOST:
            break
    rows = features.matrix(kernels, hardware, 1)
    making = min(_seconds(lambda: features.matrix(kernels, hardware, 1)) for _ in range(_TIMES))
    asking = min(_seconds(lambda: predictor.seconds(rows)) for _ in range(_TIMES))
    return len(kernels), making / len(kernels), asking / len(kernels)


def _seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started
