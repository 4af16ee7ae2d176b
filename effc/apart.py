"""Compiling a model anew, whatever the user has compiled of it: what the report and the planner do."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed

from effc.calibrating.identity import original
from effc.compiler.capture import backend
from effc.compiler.capture.devices import Build
from effc.compiler.capture.owner import owner_of
from effc.compiler.ir.errors import EffcError
from effc.compiler.ir.options import Options

_numbers = itertools.count()
#: Dynamo takes to eager the forward that another call has compiled too often, unless its entries are kept apart (PyTorch 2.13).
_ISOLATED: dict[str, Any] = {
    name: True for name in ("isolate_recompiles",) if name in inspect.signature(torch.compile).parameters
}


def compiled_apart(
    model: Callable[..., Any], options: Options, builder: Callable[[Options], Build] | None = None
) -> Callable[..., Any]:
    """``model`` through effc, with nothing in common with what the user has compiled of it. Errors are effc's own.

    ``builder(options)`` makes executables of regions, by default the backend's.
    """
    owner = owner_of(original(model))

    def compile_graph(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        return backend.compile_with(gm, example_inputs, options, builder or backend.builder, owner=owner)

    return compiled_by(model, compile_graph)


def compiled_by(model: object, backend: Callable[..., Callable[..., Any]]) -> Callable[..., Any]:
    """``model`` through ``backend``, a function of a graph of Dynamo's and its inputs; else as `compiled_apart`."""
    compiled = torch.compile(_caller_of(original(model)), backend=backend, **_ISOLATED)

    def call(*args: Any, **kwargs: Any) -> Any:
        with _own_errors():
            return compiled(*args, **kwargs)

    return call


@contextmanager
def _own_errors() -> Iterator[None]:
    """Takes Dynamo's wrapping off effc's errors: their text is for the user."""
    try:
        yield
    except BackendCompilerFailed as error:
        if isinstance(error.inner_exception, EffcError):
            raise error.inner_exception from None
        raise


def _caller_of(model: object) -> Callable[..., Any]:
    """A function with code of its own, so that Dynamo's cache entry for it lies apart from the user's.

    Its name is its own too: by the code's name Dynamo remembers which sizes changed between calls, of any model.
    """
    name = f"apart_{next(_numbers)}"
    scope: dict[str, Any] = {"model": model}
    exec(f"def {name}(*inputs, **named):\n    return model(*inputs, **named)\n", scope)
    function: Callable[..., Any] = scope[name]
    return function
