"""``StoredWeight``: the compressed form of one parameter, as a plan holds it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import torch

from effc.compiler.compress.activations import ActivationRange
from effc.compiler.compress.form import Form

#: Elements of a tensor that its digest reads: enough to tell trainings apart, too few to take time.
_SAMPLED = 64

AnyForm = TypeVar("AnyForm", bound=Form, covariant=True)


@dataclass(frozen=True, eq=False)
class StoredWeight(Generic[AnyForm]):
    """``form`` of a parameter; ``source``: `sampled_digest` of the parameter. ``range``: of the activation that meets it, where that is
    int8 by one scale.
    """

    form: AnyForm
    source: str
    range: ActivationRange | None = None

    @cached_property
    def digest(self) -> str:
        """A hash of the content."""
        found = hashlib.sha256(f"{self.form.kind} {self.range} {self.source}\0".encode())
        for role, tensor in self.form.parts().items():
            found.update(f"{role} {tensor.dtype} {list(tensor.shape)}\0".encode())
            found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:32]


def sampled_digest(tensor: torch.Tensor) -> str:
    """A hash of a tensor's dtype, shape, and some of its elements."""
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\0".encode())
    flat = tensor.detach().reshape(-1)
    taken = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].contiguous()
    found.update(taken.cpu().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]
