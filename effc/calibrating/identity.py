"""Which model a calibration, a plan or a saved folder is made from, and whether it trains."""

from __future__ import annotations

import hashlib

from torch import nn
from torch.fx import GraphModule

from effc.compiler.compress.stored import sampled_digest


def model_digest(model: nn.Module) -> str:
    """A hash of every parameter's and buffer's name, shape, dtype, and some of its elements."""
    found = hashlib.sha256()
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        found.update(f"{name} {sampled_digest(tensor)}\0".encode())
    return found.hexdigest()[:32]


def original(model: object) -> object:
    """The module or function that ``torch.compile`` wrapped, or ``model`` itself."""
    return getattr(model, "_orig_mod", model)


def trains(module: nn.Module) -> bool:
    """Whether ``module`` is in training mode. One that ``torch.export`` made, as tools for quantization do, has its mode in its operations
    and no ``eval()``: it is what it was traced as.
    """
    return module.training and not (isinstance(module, GraphModule) and "inline_constraints" in module.meta)
