"""Which model a calibration or a plan belongs to."""

from __future__ import annotations

import hashlib

from torch import nn

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
