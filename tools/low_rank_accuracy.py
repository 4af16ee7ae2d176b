"""What low-rank factors cost in accuracy: shares of parameters and methods on pretrained models, over seeds, with confidence intervals.

    make models && apt-get install dataset-fashion-mnist     # once
    python tools/low_rank_accuracy.py --tasks language embeddings images --seeds 3 --threads 1

`accuracy_table.py` says how a row is measured. Parameters are those of all layers that a task compresses; int8 factors count a
quarter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import accuracy_table
import torch
from accuracy_table import together
from accuracy_tasks import Task
from torch import Tensor, nn

import effc
from effc.compiler.compress.form import Form
from effc.compiler.compress.low_rank.factorize import Spectra, choose, factorize
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.low_rank.filters import FilterChain
from effc.compiler.compress.low_rank.layer import Layer
from effc.compiler.compress.recipe import quantize
from effc.compiler.ir.quantization import Recipe, Scheme
from effc.passes.low_rank import LowRank, Method


class Row(accuracy_table.Row):
    """``kept``: the share of the parameters; ``gradients``: errors count as the model's output shows them; ``int8``: the factors are
    quantized too.
    """

    def __init__(self, kept: float, method: Method, gradients: bool, int8: bool) -> None:
        self.kept, self.method, self.gradients, self.int8 = kept, method, gradients, int8
        self.cells = (f"{kept:.0%}", method + ", gradients" * gradients + ", int8" * int8)

    def compress(self, task: Task, calibration: effc.Calibration) -> Mapping[str, Form]:
        if not self.gradients:
            calibration = _without_gradients(calibration)
        options = LowRank(parameters=self.kept, method=self.method, calibration=calibration)
        groups = [names for found in together(task, calibration) for names in _sharing(task, found)]
        spectra = _spectra(task, options, self.gradients)
        chosen = choose(groups, spectra, options).values()
        taken = list(dict.fromkeys(c for c in chosen if c is not None))
        found = factorize(taken, spectra, dict.fromkeys(spectra.layers, torch.float32))
        return {name: _in_bytes(form) if self.int8 else form for name, form in found.items()}

    def size(self, task: Task, forms: Mapping[str, Form]) -> str:
        """Of the parameters, in bytes: a factor that weights share counts once."""
        shared = {id(part): part for form in forms.values() for role, part in form.parts().items() if role != "shift"}
        sizes = {name: task.model.get_parameter(name).numel() for name in task.weights()}
        left = sum(part.numel() for part in shared.values()) / (4 if self.int8 else 1)
        return f"{(left + sum(s for name, s in sizes.items() if name not in forms)) / sum(sizes.values()):.1%}"


def _sharing(task: Task, names: list[str]) -> list[list[str]]:
    """Convolutions share no factor."""
    return [names] if task.model.get_parameter(names[0]).dim() == 2 else [[name] for name in names]


def _layer(module: nn.Module) -> Layer:
    weight = module.get_parameter("weight").detach().clone()
    if isinstance(module, nn.Conv2d):
        return Layer(weight, tuple(module.stride), tuple(module.dilation), module.groups)
    return Layer(weight)


def _without_gradients(calibration: effc.Calibration) -> effc.Calibration:
    sites = {name: replace(statistics, sensitivity=None) for name, statistics in calibration.sites.items()}
    return replace(calibration, sites=sites, digest=f"{calibration.digest} without gradients")


_made: dict[tuple[Method, bool], tuple[effc.Calibration, Spectra]] = {}


def _spectra(task: Task, options: LowRank, gradients: bool) -> Spectra:
    """Of all of the task's weights, made once for a method."""
    assert isinstance(options.calibration, effc.Calibration)
    key = (options.method, gradients)
    if key not in _made or _made[key][0] != options.calibration:
        layers = {n: _layer(task.model.get_submodule(n.removesuffix(".weight"))) for n in task.weights()}
        _made[key] = (options.calibration, Spectra(layers, options))
    return _made[key][1]


def _in_bytes(form: Form) -> Form:
    def rounded(part: Tensor) -> Tensor:
        return quantize({"": part}, Scheme(), Recipe())[""].dense().view_as(part)

    if isinstance(form, FilterChain):
        return replace(form, kernels=tuple(map(rounded, form.kernels)))
    assert isinstance(form, Factors), "there is no other form of factors"
    return Factors(rounded(form.left), rounded(form.right), form.shift)


_KEPT = (0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.5, 0.35)
_METHODS: tuple[tuple[Method, bool, bool], ...] = (
    ("svd", False, False),
    ("output", False, False),
    ("output", True, False),
    ("output", True, True),
)
ROWS = tuple(Row(kept, *method) for kept, method in product(_KEPT, _METHODS))


if __name__ == "__main__":
    accuracy_table.main(__doc__, ROWS, ("parameters asked", "method", "parameters"), ("language",))
