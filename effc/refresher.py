"""``effc.refresh``: tell effc that weights have changed in a way that PyTorch does not see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from effc.calibrating.identity import original
from effc.compiler.compress.watched import renew
from effc.compiler.ir.errors import InputError
from effc.runtime.weights import forget


def refresh(model: nn.Module | Callable[..., Any]) -> None:
    """Derive all packed, folded, converted and compressed forms of the weights of ``model`` anew at the next call.

    An optimizer's step, ``load_state_dict`` and in-place operations are noticed without this. It is for writes through
    ``.data``, NumPy views, and in-place operations on inference tensors. InputError: ``model`` is no module.
    """
    module = original(model)
    if not isinstance(module, nn.Module):
        raise InputError(f"refresh takes the module (compiled or not), not {type(module).__name__}")
    tensors = [*module.parameters(), *module.buffers()]
    forget(tensors)
    renew(tensors)
