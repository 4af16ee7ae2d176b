"""Compressed weights of plans as plain data and tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch

from effc.compiler.compress.activations import ActivationRange
from effc.compiler.compress.form import Form
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.low_rank.filters import FilterChain
from effc.compiler.compress.pruning.pruned import PrunedWeight, sparsity_of
from effc.compiler.compress.quantized import DualScales, QuantizedWeight, ScaleCodes
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir.pattern import Pattern
from effc.compiler.ir.quantization import Scheme
from effc.compiler.ir.sparsity import Sparsity


class Tensors:
    """The tensors of a file, in order; one that several weights share is there once."""

    def __init__(self) -> None:
        self.listed: list[torch.Tensor] = []
        self._places: dict[int, int] = {}

    def place(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        if id(tensor) not in self._places:
            self._places[id(tensor)] = len(self.listed)
            self.listed.append(tensor)
        return self._places[id(tensor)]


def encoded(stored: StoredWeight[Form], tensors: Tensors) -> dict[str, Any]:
    """Plain data for a weight, whose tensors are added to ``tensors``."""
    range_ = None if stored.range is None else [stored.range.scale, stored.range.zero]
    data = {"source": stored.source, "range": range_}
    form = stored.form
    if isinstance(form, Factors):
        parts = (form.left, form.right, form.shift)
        return {**data, "kind": "low rank", "places": [tensors.place(t) for t in parts]}
    if isinstance(form, FilterChain):
        places = [tensors.place(t) for t in (form.shift, *form.kernels)]
        return {**data, "kind": "filters", "groups": form.groups, "places": places}
    if isinstance(form, PrunedWeight):
        return {
            **data,
            "kind": "pruned",
            "pattern": str(form.pattern),
            "sparsity": form.sparsity.numbers,
            "places": [tensors.place(form.weight)],
        }
    assert isinstance(form, QuantizedWeight), "plans hold no other form"
    coded, dual = form.scale_codes, form.dual
    return {
        **data,
        "kind": "quantized",
        "scheme": asdict(form.scheme),
        "places": [tensors.place(t) for t in (form.codes, form.scales, form.zeros, form.smoothing)],
        "blocks": None
        if coded is None
        else [coded.block, *(tensors.place(t) for t in (coded.codes, coded.block_scales, coded.mean))],
        "grains": None if dual is None else [tensors.place(t) for t in (dual.groups, dual.channels)],
    }


def decoded(data: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> StoredWeight[Form]:
    """What `encoded` has made. ValueError, KeyError, TypeError or IndexError: it holds something else."""
    range_ = None if data["range"] is None else ActivationRange(*data["range"])
    return StoredWeight(_FORMS[data["kind"]](data, tensors), data["source"], range_)


def _factors(data: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> Factors:
    left, right, shift = _taken(data["places"], tensors)
    if left is None or right is None or left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
        raise ValueError("factors that cannot be multiplied")
    if shift is not None and shift.shape != left.shape[:1]:
        raise ValueError(f"a shift of {list(shift.shape)} for outputs of {len(left)}")
    return Factors(left, right, shift)


def _filters(data: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> FilterChain:
    shift, *places = _taken(data["places"], tensors)
    kernels = tuple(kernel for kernel in places if kernel is not None)
    groups = int(data["groups"])
    if len(kernels) < len(places) or not kernels or any(k.dim() < 3 or k.dim() != kernels[0].dim() for k in kernels):
        raise ValueError("filters without dimensions")
    if any(len(k) % groups for k in kernels) or any(len(a) != groups * b.shape[1] for a, b in pairwise(kernels)):
        raise ValueError("filters that do not follow one another")
    if shift is not None and shift.shape != kernels[-1].shape[:1]:
        raise ValueError(f"a shift of {list(shift.shape)} for outputs of {len(kernels[-1])}")
    return FilterChain(kernels, groups, shift)


def _pruned(data: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> PrunedWeight:
    (weight,) = _taken(data["places"], tensors)
    if weight is None or weight.dim() < 2:
        raise ValueError("a pruned weight without dimensions")
    pattern, room = Pattern.parse(data["pattern"]), Sparsity(*data["sparsity"])
    found = sparsity_of(weight, pattern)
    if not room.holds(found):
        raise ValueError(f"{found} where {room} is said")
    return PrunedWeight(weight, pattern, room)


def _quantized(data: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> QuantizedWeight:
    scheme = Scheme(**data["scheme"])
    codes, scales, zeros, smoothing = _taken(data["places"], tensors)
    if codes is None or scales is None:
        raise ValueError("codes without scales")
    low, high = scheme.limits
    if codes.numel() and not low <= int(codes.min()) <= int(codes.max()) <= high:
        raise ValueError(f"codes outside {low} to {high}")
    coded = dual = None
    if data["blocks"] is not None:
        block, *places = data["blocks"]
        scale_codes, block_scales, mean = (tensors[place] for place in places)
        coded = ScaleCodes(scale_codes, block_scales, mean, block)
    if data["grains"] is not None:
        groups, channels = (tensors[place] for place in data["grains"])
        dual = DualScales(groups, channels)
    return QuantizedWeight(scheme, codes, scales, zeros, smoothing, coded, dual)


_FORMS: Mapping[str, Callable[[Mapping[str, Any], Sequence[torch.Tensor]], Form]] = {
    "low rank": _factors,
    "filters": _filters,
    "pruned": _pruned,
    "quantized": _quantized,
}


def _taken(places: Sequence[int | None], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    return [None if place is None else tensors[place] for place in places]
