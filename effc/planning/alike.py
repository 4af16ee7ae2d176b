"""Layers that are alike: what a compression makes of one of them, and what its kernels are predicted to take, holds for all."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from effc.compiler.compress.form import Form
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir.site import Site

#: Kernels before and behind one, in the order of the program, that are alike too where it is.
_AROUND = 2


def surroundings(sites: Sequence[Site]) -> list[Hashable]:
    """Of each kernel of a model: what it and those around it compute, on which sizes. Where that is the same, operations are."""
    kernels = [(site.spec.key(), site.symbols) for site in sites]
    return [tuple(kernels[max(0, i - _AROUND) : i + _AROUND + 1]) for i in range(len(kernels))]


def made_alike(weights: Mapping[str, StoredWeight[Form]]) -> Hashable:
    """Of one parameter's compressed weights, what kernels depend on: of each its kind and the shapes of its parts."""
    return tuple(
        (name.partition(":")[2], stored.form.kind, stored.range is None, _parts(stored.form))
        for name, stored in weights.items()
    )


def _parts(form: Form) -> Hashable:
    return tuple((role, part.shape, part.dtype) for role, part in form.parts().items())


def examples(kinds: Mapping[str, Hashable]) -> dict[str, str]:
    """By name, the one whose kernels serve for all of its kind: the middle one, so that the kinds that a block of layers has have theirs in
    one block.
    """
    families: dict[Hashable, list[str]] = {}
    for name, kind in kinds.items():
        families.setdefault(kind, []).append(name)
    return {name: family[len(family) // 2] for family in families.values() for name in family}
