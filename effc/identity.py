"""Which model a calibration or a plan belongs to."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

#: Elements of each tensor that the digest reads: enough to tell trainings apart, too few to take time.
_SAMPLED = 64


def model_digest(model: nn.Module) -> str:
    """A hash of every parameter's and buffer's name, shape, dtype, and some of its elements."""
    found = hashlib.sha256()
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        flat = tensor.detach().reshape(-1)
        taken = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].contiguous()
        found.update(taken.cpu().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def original(model: object) -> object:
    """The module or function that ``torch.compile`` wrapped, or ``model`` itself."""
    return getattr(model, "_orig_mod", model)
