"""Runs of a compiled model that Dynamo must not take to eager: what is measured there would be taken for the compiled model's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch._dynamo import config
from torch._dynamo.exc import FailOnRecompileLimitHit

from effc.compiler.ir.errors import InputError


@contextmanager
def compiled_or_refused(more: int) -> Iterator[None]:
    """Calls inside may make Dynamo compile one function so many times ``more`` than it does by itself. InputError: even more often, where
    it would go on in eager and only log it.
    """
    limits = {
        "recompile_limit": config.recompile_limit + more,
        "accumulated_recompile_limit": config.accumulated_recompile_limit + more,
        "fail_on_recompile_limit_hit": True,
    }
    try:
        with config.patch(limits):
            yield
    except FailOnRecompileLimitHit as error:
        raise InputError(
            f"a function of the model was compiled more than {limits['recompile_limit']} times, so PyTorch would give up and run it in "
            "eager (TORCH_LOGS=recompiles says which, and why): take out of its forward what differs between calls, or between layers, "
            "such as a counter or a name, or calibrate with batches of fewer kinds"
        ) from error
