"""Plans in files: one archive each, with the compressed weights in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch

from effc.compiler.compress.activations import ActivationRange
from effc.compiler.compress.quantized import DualScales, QuantizedWeight, ScaleCodes
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir import plan as ir
from effc.compiler.ir.errors import ArtifactError
from effc.compiler.ir.quantization import Scheme
from effc.runtime import archive

KIND = "plan 3"
_PARTS = ("codes", "scales", "zeros", "smoothing")


class Plan(ir.Plan):
    """See ``effc.compiler.ir.plan``; this one can be kept in a file."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan; a file that is there is replaced in one step."""
        tensors: list[torch.Tensor] = []
        weights = {name: _weight_out(weight, tensors) for name, weight in self.weights.items()}
        archive.write(path, KIND, {"plan": self.to_json(), "weights": weights}, tensors)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """What ``save`` wrote. ArtifactError: unreadable, truncated, edited, or of another version."""
        return load_plan(path)


def plan_of(plan: ir.Plan) -> Plan:
    """The same plan, as one that can be kept."""
    return Plan(**{f.name: getattr(plan, f.name) for f in fields(plan)})


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """The plan in a file; see `Plan.load`."""
    found = archive.read(path, KIND)
    try:
        weights = {name: _weight_in(data, found.tensors) for name, data in found.values["weights"].items()}
        return plan_of(ir.Plan.from_json(found.values["plan"], weights))
    except (KeyError, TypeError, ValueError, IndexError) as err:
        raise ArtifactError(f"the plan {path} does not hold what a plan holds ({err!r})") from err


def _weight_out(stored: StoredWeight[QuantizedWeight], tensors: list[torch.Tensor]) -> dict[str, Any]:
    """Plain data for a weight, whose tensors are added to ``tensors``."""
    places = {}
    for part in _PARTS:
        tensor = getattr(stored.form, part)
        if tensor is not None:
            places[part] = len(tensors)
            tensors.append(tensor)
    range_ = None if stored.range is None else [stored.range.scale, stored.range.zero]
    coded = stored.form.scale_codes
    blocks = None
    if coded is not None:
        blocks = [coded.block, len(tensors)]
        tensors += [coded.codes, coded.block_scales, coded.mean]
    dual = stored.form.dual
    grains = None
    if dual is not None:
        grains = len(tensors)
        tensors += [dual.groups, dual.channels]
    return {
        "scheme": asdict(stored.form.scheme),
        "range": range_,
        "source": stored.source,
        "places": places,
        "blocks": blocks,
        "grains": grains,
    }


def _weight_in(data: Mapping[str, Any], tensors: tuple[torch.Tensor, ...]) -> StoredWeight[QuantizedWeight]:
    parts: dict[str, Any] = {part: tensors[place] for part, place in data["places"].items()}
    range_ = None if data["range"] is None else ActivationRange(*data["range"])
    if data["blocks"] is not None:
        block, place = data["blocks"]
        codes, block_scales, mean = tensors[place : place + 3]
        parts["scale_codes"] = ScaleCodes(codes, block_scales, mean, block)
    if (place := data["grains"]) is not None:
        parts["dual"] = DualScales(*tensors[place : place + 2])
    scheme = Scheme(**data["scheme"])
    low, high = scheme.limits
    if parts["codes"].numel() and not low <= int(parts["codes"].min()) <= int(parts["codes"].max()) <= high:
        raise ValueError(f"codes outside {low} to {high}")
    return StoredWeight(QuantizedWeight(scheme, **parts), data["source"], range_)
