"""``effc.explain``: compile a model once, and report what effc does with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed

from effc.compiler.capture.backend import effc as backend
from effc.compiler.capture.recording import record
from effc.compiler.ir.errors import EffcError
from effc.compiler.ir.options import Options
from effc.report import Report


def explain(model: Callable[..., Any], *inputs: Any, options: Options | Mapping[str, Any] | None = None) -> Report:
    """Compile ``model`` for ``inputs``, call it once, and return what was compiled, what was left to ATen, and why.

    The call has the effects that ``model(*inputs)`` has (it writes caches and statistics), in the current grad mode.
    What the user has compiled stays compiled: the model is traced as part of a new function. OptionError: ``options``
    are not taken; UnsupportedError: ``fallback="error"`` and an op that effc does not compile.
    """
    chosen = Options.of(options)
    inner = getattr(model, "_orig_mod", model)  # of a model that torch.compile has wrapped already

    def compile_graph(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        return backend(gm, example_inputs, options=chosen)

    with record() as recording:
        start = time.perf_counter()
        try:
            torch.compile(_caller_of(inner), backend=compile_graph)(*inputs)
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, EffcError):
                raise error.inner_exception from None  # without Dynamo's wrapping: its text is for the user
            raise
        seconds = time.perf_counter() - start
    return Report.of(recording, seconds)


def _caller_of(model: Callable[..., Any]) -> Callable[..., Any]:
    """A function with code of its own, so that Dynamo's cache entry for it lies apart from the user's."""
    scope: dict[str, Any] = {"model": model}
    exec("def explained(*inputs):\n    return model(*inputs)\n", scope)
    function: Callable[..., Any] = scope["explained"]
    return function
