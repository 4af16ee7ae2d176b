"""``effc.explain``: compile a model once, and report what effc does with it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from effc.apart import compiled_apart
from effc.compiler.capture.recording import Recording, record
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import Options
from effc.kernel_clock import KernelClock
from effc.reporting.report import Measured, Report

#: Calls that are not timed, before those that are.
_WARM = 3


def explain(
    model: Callable[..., Any], *inputs: Any, options: Options | Mapping[str, Any] | None = None, rounds: int = 0
) -> Report:
    """Compile ``model`` for ``inputs``, call it once, and return what was compiled, what was left to ATen, and why.

    ``rounds``: how many more calls are timed, first as a whole and then kernel by kernel; 0: no times. Times are in seconds.

    Each call has the effects that ``model(*inputs)`` has (it writes caches and statistics), in the current grad mode. What the user has
    compiled stays compiled: the model is traced as part of a new function.

    OptionError: a wrong option, or ``rounds`` is no number of calls. UnsupportedError: ``fallback="error"`` and an op that effc does not
    compile.
    """
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 0:
        raise OptionError(f"rounds={rounds!r}: expected how many calls are timed, 0 or more")
    clock = KernelClock() if rounds else None
    compiled = compiled_apart(model, Options.of(options), clock.builder if clock is not None else None)
    with record() as recording:
        start = time.perf_counter()
        compiled(*inputs)
        seconds = time.perf_counter() - start
    measured = _measured(lambda: compiled(*inputs), clock, recording, rounds) if clock is not None else None
    return Report.of(recording, seconds, measured)


def _measured(call: Callable[[], Any], clock: KernelClock, recording: Recording, rounds: int) -> Measured:
    """The median of whole calls, and of each kernel its least time."""
    spent = []
    for _ in range(_WARM + rounds):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    with clock.running():
        for _ in range(_WARM + rounds):
            call()
    calls = [(program, n) for program, _ in recording.programs for n in range(len(program.calls))]
    kernels = (clock.seconds.get((id(program), n)) for program, n in calls)  # a backward graph is compiled, but not run
    return Measured(statistics.median(spent[_WARM:]), tuple(min(k) if k else None for k in kernels))
