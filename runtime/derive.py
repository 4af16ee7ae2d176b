"""Derivations: pure functions from a parameter to the form that kernels read. ``Derived.function`` names one of `FUNCTIONS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from effc.compiler.ir.errors import ArtifactError
from effc.compiler.ir.program import Part
from effc.runtime.block_lists import block_elements, block_places, block_starts
from effc.runtime.group_panels import group_panels
from effc.runtime.nibbles import pack_nibbles
from effc.runtime.pages import Pages
from effc.runtime.panels import not_finite, pack_codes, pack_panels
from effc.runtime.sparse_panels import sparse_panels
from effc.runtime.winograd import winograd_panels

Derivation = Callable[..., torch.Tensor]


def contiguous(source: torch.Tensor) -> torch.Tensor:
    """The same values, to be copied."""
    return source


def join(parts: Sequence[tuple[Part, torch.Tensor]]) -> torch.Tensor:
    """What a ``Joined`` stands for, from its parts with the tensors that they are views of."""
    return torch.cat([t.as_strided(p.sizes, p.strides, t.storage_offset() + p.offset) for p, t in parts])


def as_is(source: torch.Tensor) -> torch.Tensor:
    """The source itself: it was computed for this."""
    return source


FUNCTIONS: Mapping[str, Derivation] = {
    "as_is": as_is,
    "block_elements": block_elements,
    "block_places": block_places,
    "block_starts": block_starts,
    "contiguous": contiguous,
    "group_panels": group_panels,
    "not_finite": not_finite,
    "pack_codes": pack_codes,
    "pack_nibbles": pack_nibbles,
    "pack_panels": pack_panels,
    "sparse_panels": sparse_panels,
    "winograd_panels": winograd_panels,
}


def derive(
    function: str, source: torch.Tensor, attributes: Mapping[str, Any], pages: Pages | None = None
) -> torch.Tensor:
    """Apply the derivation named ``function``; what it makes lies row-major in ``pages``, or in memory of its own; on a GPU as it comes.

    ArtifactError where this version of effc has none of that name.
    """
    if function not in FUNCTIONS:
        raise ArtifactError(
            f"a program asks for the derivation '{function}', which this version of effc lacks; compile it again"
        )
    with torch.no_grad():
        result = FUNCTIONS[function](source, **attributes)
        if function == "as_is" or result.device.type != "cpu":
            return result
        return (pages or Pages()).copy(result)
