"""Runs of a compiled model that Dynamo must not take to eager: what is measured there would be taken for the compiled model's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch._dynamo import config
from torch._dynamo.exc import FailOnRecompileLimitHit

from effc.compiler.ir.errors import InputError


@contextmanager
def compiled_or_refused(forms: int) -> Iterator[None]:
    """Calls inside may make Dynamo compile a model for so many ``forms`` of inputs more than it does by itself. InputError: for even more
    than that, where it would go on in eager and only log it.
    """
    limits = {
        "recompile_limit": config.recompile_limit + forms,
        "accumulated_recompile_limit": config.accumulated_recompile_limit + forms,
        "fail_on_recompile_limit_hit": True,
    }
    try:
        with config.patch(limits):
            yield
    except FailOnRecompileLimitHit as error:
        raise InputError(
            "the model is compiled anew in call after call, so PyTorch would give up and run it in eager (TORCH_LOGS=recompiles says why): "
            "take out of its forward what changes between calls, such as a counter, or calibrate with batches of fewer kinds"
        ) from error
