"""What is for CPUs alone says so of models on a GPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from effc.compiler.ir.errors import InputError


def require_cpu(what: str, model: nn.Module, inputs: Any = ()) -> None:
    """InputError where a parameter, a buffer or an input is elsewhere."""
    named = [*model.named_parameters(), *model.named_buffers()]
    named += [("an input", leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    for name, tensor in named:
        if tensor.device.type != "cpu":
            raise InputError(
                f"{what} is for models on the CPU, and {name} is on {tensor.device}: call model.cpu() first; on a GPU "
                "torch.compile(model, backend='effc') alone works so far"
            )
