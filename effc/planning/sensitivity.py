"""How much of an error of a layer's weight the model's outputs show: measured in eager, by rounding the weight to bytes.

Of layers that are alike, in a deep model, only some are measured, spread over its depth: what lies between two of them is taken to lie
between what these show.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from effc.calibrating.calibration import cloned
from effc.compiler.compress.clipping import by_max
from effc.compiler.compress.nearest import nearest
from effc.compiler.compress.sites import WeightSite
from effc.compiler.ir.quantization import Scheme
from effc.metrics import relative_l2
from effc.planning.proxies import output_error
from effc.planning.trial import Trial

#: Layers that are alike, of which at most so many are measured.
_MEASURED = 4


class Sensitivity:
    """On the last batch of ``trial``, each weight when it is first asked for."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.calibration = trial, trial.calibration.judging()
        self._sites = trial.sites()
        self._alike = alike({name: (site.rows, site.width) for name, (site, _) in self._sites.items()})
        self._known: dict[str, float] = {}

    def of(self, site: WeightSite, matrix: Tensor) -> float:
        """The model's relative L2 error over that of the layer's outputs; ``matrix``: the site's weight."""
        name = site.name
        if name not in self._known:
            others = self._alike.get(name, [name])
            measured = spread(len(others), _MEASURED)
            at = [self._measured(others[i], site, matrix) for i in measured]
            self._known |= zip(others, between(measured, at, len(others)), strict=True)
        return self._known[name]

    def _measured(self, name: str, site: WeightSite, matrix: Tensor) -> float:
        """Of the weight ``name``, which is the one at ``site`` where that has it."""
        if name != site.name:
            site, weight = self._sites[name]
            matrix = site.matrix(weight)
        rounded = nearest(matrix, by_max(matrix, Scheme())).dense()
        own = output_error(rounded, matrix, self.calibration.sites.get(name), name)
        return self._model_error(site, rounded) / own if own > 0 else 1.0

    def _model_error(self, site: WeightSite, matrix: Tensor) -> float:
        args, kwargs = cloned(self.calibration.batches[-1])
        with torch.no_grad():
            output = functional_call(self.trial.model, {site.name: site.tensor(matrix)}, args, dict(kwargs))
        return relative_l2(self.calibration.outputs[-1:], [output], [args])


def alike(shapes: Mapping[str, object]) -> dict[str, list[str]]:
    """Of each weight those, in their order, whose names differ from its own in a number alone, and that have the same shape."""
    families: dict[tuple[str, object], list[str]] = {}
    for name, shape in shapes.items():
        families.setdefault((re.sub(r"\d+", "#", name), shape), []).append(name)
    return {name: family for family in families.values() for name in family}


def spread(count: int, most: int) -> list[int]:
    """The places of at most so many of ``count``, from the first to the last."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def between(places: Sequence[int], values: Sequence[float], count: int) -> list[float]:
    """``values`` at their ``places``, and at the others of ``count`` what lies between, on a scale of ratios. That has no place for zeros,
    infinities and NaN: they stand for themselves alone. Without a positive number the others are the largest finite one, or NaN.
    """
    known = dict(zip(places, values, strict=True))
    usable = [(place, value) for place, value in known.items() if value > 0 and math.isfinite(value)]
    if not usable:
        other = max(filter(math.isfinite, values), default=math.nan)
        return [known.get(place, other) for place in range(count)]
    at, logarithms = zip(*((place, math.log(value)) for place, value in usable), strict=True)
    return [known.get(place, math.exp(np.interp(place, at, logarithms))) for place in range(count)]
