"""Estimated errors of compressed weights: of a layer's own output, and how much of it the model's outputs show."""

from __future__ import annotations

import math

import torch
from torch.func import functional_call

from effc.calibration import cloned
from effc.compiler.compress.sites import WeightSite
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir.calibration import Statistics
from effc.metrics import relative_l2
from effc.trial import Trial

_BYTE = 127.0


def output_error(stored: StoredWeight, matrix: torch.Tensor, statistics: Statistics | None) -> float:
    """Relative L2 error of what the layer gives for the calibration's rows, its activations rounded as they will be.

    ``matrix``: the weight, float32 [out, sum]. Where the rows do not meet its columns (a kernel over several positions, an embedding),
    that of the weight, and of the activations by themselves.
    """
    weight = stored.weight
    kind = weight.scheme.activations
    if statistics is None or statistics.sample.shape[1] != matrix.shape[1]:
        own = _relative(weight.dequantized(), matrix)
        if kind != "tensor" or stored.range is None or statistics is None:
            return own
        size = math.sqrt(float(statistics.mean_square.mean())) or 1.0
        return math.hypot(own, stored.range.scale / math.sqrt(12) / size)  # rounding is uniform within a step
    rows = torch.from_numpy(statistics.sample)
    exact = rows @ matrix.T
    if weight.smoothing is not None:
        rows = rows / weight.smoothing
    if kind == "token":
        scale = (rows.abs().amax(1, keepdim=True) / _BYTE).clamp(min=1e-12)
        rows = (rows / scale).round() * scale
    elif kind == "tensor" and stored.range is not None:
        r = stored.range
        rows = ((rows / r.scale).round() + r.zero).clamp(0, 255).sub(r.zero) * r.scale
    return _relative(rows @ weight.stored().T, exact)


class Sensitivity:
    """How far the model's outputs are off for an error of a layer's weight: measured in eager, once a weight, on the first batch."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self._known: dict[str, float] = {}

    def of(self, site: WeightSite, stored: StoredWeight, matrix: torch.Tensor) -> float:
        """The model's relative L2 error over the layer's own, both with ``stored`` in the place of the weight."""
        if site.name not in self._known:
            own = output_error(
                StoredWeight(stored.weight, None, stored.source), matrix, self.trial.calibration.sites.get(site.name)
            )
            shown = self._model_error(site, stored)
            self._known[site.name] = shown / own if own > 0 else 1.0
        return self._known[site.name]

    def _model_error(self, site: WeightSite, stored: StoredWeight) -> float:
        calibration = self.trial.calibration
        args, kwargs = cloned(calibration.batches[0])
        with torch.no_grad():
            changed = {site.name: site.tensor(stored.weight.dequantized())}
            output = functional_call(self.trial.model, changed, args, dict(kwargs))
        return relative_l2(calibration.outputs[:1], [output], [args])


def _relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    size = float(exact.norm())
    return float((found - exact).norm()) / size if size else 0.0
