"""Derivations: pure functions from a parameter to the form that kernels read. ``Derived.function`` names one of `FUNCTIONS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from effc.compiler.ir.errors import ArtifactError
from effc.runtime.panels import pack_panels
from effc.runtime.winograd import winograd_panels

Derivation = Callable[..., torch.Tensor]


def contiguous(source: torch.Tensor) -> torch.Tensor:
    """The same values, row-major, in memory of their own."""
    return source.detach().clone(memory_format=torch.contiguous_format)


def as_is(source: torch.Tensor) -> torch.Tensor:
    """The source itself: it was computed for this."""
    return source


FUNCTIONS: Mapping[str, Derivation] = {
    "as_is": as_is,
    "contiguous": contiguous,
    "pack_panels": pack_panels,
    "winograd_panels": winograd_panels,
}


def derive(function: str, source: torch.Tensor, attributes: Mapping[str, Any]) -> torch.Tensor:
    """Apply the derivation named ``function``; ArtifactError where this version of effc has none of that name."""
    if function not in FUNCTIONS:
        raise ArtifactError(
            f"a program asks for the derivation '{function}', which this version of effc lacks; compile it again"
        )
    with torch.no_grad():
        return FUNCTIONS[function](source, **attributes)
