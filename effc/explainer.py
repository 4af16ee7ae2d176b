"""``effc.explain``: compile a model once, and report what effc does with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from effc.apart import compiled_apart
from effc.compiler.capture.recording import record
from effc.compiler.ir.options import Options
from effc.report import Report


def explain(model: Callable[..., Any], *inputs: Any, options: Options | Mapping[str, Any] | None = None) -> Report:
    """Compile ``model`` for ``inputs``, call it once, and return what was compiled, what was left to ATen, and why.

    The call has the effects that ``model(*inputs)`` has (it writes caches and statistics), in the current grad mode.
    What the user has compiled stays compiled: the model is traced as part of a new function. OptionError: ``options``
    are not taken; UnsupportedError: ``fallback="error"`` and an op that effc does not compile.
    """
    compiled = compiled_apart(model, Options.of(options))
    with record() as recording:
        start = time.perf_counter()
        compiled(*inputs)
        seconds = time.perf_counter() - start
    return Report.of(recording, seconds)
