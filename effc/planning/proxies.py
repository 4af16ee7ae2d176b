"""Estimated errors of compressed weights: of a layer's own output, and how much of it the model's outputs show."""

from __future__ import annotations

import torch
from torch.func import functional_call

from effc.calibrating.calibration import cloned
from effc.compiler.compress.form import Form, multiplied
from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.sites import WeightSite
from effc.compiler.ir.calibration import Statistics
from effc.metrics import relative_l2
from effc.planning.trial import Trial


def output_error(
    form: Form, matrix: torch.Tensor, statistics: Statistics | None, name: str, activations: bool = True
) -> float:
    """Relative L2 error of what the layer gives for the rows of ``statistics``; ``activations``: held as the form holds them, else exact.

    ``matrix``: the weight ``name``, float32 [out, sum]. Of a convolution, positions of a window count one by one. Where calibration has
    not seen the activation (of an embedding, or in groups), the error is the weight's own.
    """
    if statistics is None or matrix.shape[1] % len(statistics.least):
        return _relative(form.dense(), matrix)
    inputs = Inputs.of(statistics, name)
    found = form.outputs(inputs) if activations else multiplied(inputs, form.dense())
    return _relative(found, multiplied(inputs, matrix))


class Sensitivity:
    """How far the model's outputs are off for an error of a layer's weight: measured in eager, once a weight, on the last batch."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.calibration = trial, trial.calibration.judging()
        self._known: dict[str, float] = {}

    def of(self, site: WeightSite, form: Form, matrix: torch.Tensor) -> float:
        """The model's relative L2 error over the layer's own, both with ``form`` in the place of the exact one, activations exact."""
        if site.name not in self._known:
            statistics = self.calibration.sites.get(site.name)
            own = output_error(form, matrix, statistics, site.name, activations=False)
            self._known[site.name] = self._model_error(site, form) / own if own > 0 else 1.0
        return self._known[site.name]

    def _model_error(self, site: WeightSite, form: Form) -> float:
        args, kwargs = cloned(self.calibration.batches[-1])
        with torch.no_grad():
            changed = {site.name: site.tensor(form.dense())}
            output = functional_call(self.trial.model, changed, args, dict(kwargs))
        return relative_l2(self.calibration.outputs[-1:], [output], [args])


def _relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    size = float(exact.norm())
    return float((found - exact).norm()) / size if size else 0.0
