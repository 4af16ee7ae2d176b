"""``StoredWeight``: the compressed form of one parameter, as a plan holds it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property

import torch

from effc.compiler.compress.activations import ActivationRange
from effc.compiler.compress.quantized import QuantizedWeight

#: Elements of a tensor that its digest reads: enough to tell trainings apart, too few to take time.
_SAMPLED = 64


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """``weight``, and the ``range`` of the activation that meets it where that is int8 by one scale; ``source``: `sampled_digest` of the
    parameter.
    """

    weight: QuantizedWeight
    range: ActivationRange | None
    source: str

    @cached_property
    def digest(self) -> str:
        """A hash of the content."""
        found = hashlib.sha256(repr((asdict(self.weight.scheme), self.range, self.source)).encode())
        w = self.weight
        for tensor in (w.codes, w.scales, w.zeros, w.smoothing, None if w.dual is None else w.dual.groups):
            if tensor is not None:
                found.update(f"{list(tensor.shape)}\0".encode())
                found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()[:32]


def sampled_digest(tensor: torch.Tensor) -> str:
    """A hash of a tensor's dtype, shape, and some of its elements."""
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\0".encode())
    flat = tensor.detach().reshape(-1)
    taken = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].contiguous()
    found.update(taken.cpu().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]
