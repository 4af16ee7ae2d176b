"""``prune``: weights that share one activation, by a pattern, a share of zeros and a method."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from effc.compiler.compress.compensation import Compensation
from effc.compiler.compress.inputs import Inputs, check_fit
from effc.compiler.compress.pruning.magnitude import magnitude
from effc.compiler.compress.pruning.masks import laid_back, laid_out
from effc.compiler.compress.pruning.sparsegpt import sparsegpt
from effc.compiler.compress.pruning.wanda import wanda
from effc.compiler.ir.calibration import Statistics
from effc.compiler.ir.errors import InputError, OptionError
from effc.compiler.ir.pattern import Pattern
from effc.passes.sparsity import Method

#: Weights up to here stay finite however the others make up for them.
_LARGEST = 1e30


def prune(
    weights: Mapping[str, Tensor],
    pattern: Pattern,
    sparsity: float,
    method: Method = "magnitude",
    statistics: Statistics | None = None,
) -> dict[str, Tensor]:
    """Each of ``weights`` by name, floats ``[out, channels, window…]`` that all meet the one activation of ``statistics``, with
    ``sparsity`` (above 0, below 1; that of an N:M pattern) of its elements zeros: float32 of its shape.

    OptionError: a pattern that does not divide a weight; a method that needs calibration, and ``statistics`` None.
    InputError: a weight without elements, of zeros alone, or with NaN, infinity or more than 1e30; statistics of another number of
    channels, or with NaN or infinity.
    """
    for name, weight in weights.items():
        check_weight(name, weight)
        misfit = pattern.misfit(name, weight.shape)
        if misfit:
            raise OptionError(f"{misfit}: choose another pattern, or leave this layer out")
    inputs = None if method == "magnitude" else inputs_of(weights, method, statistics)
    compensation = None
    if method == "sparsegpt":
        assert inputs is not None
        compensation = Compensation.of(inputs, ordered=False)

    def pruned(weight: Tensor) -> Tensor:
        if inputs is None:
            return magnitude(weight, pattern, sparsity)
        if compensation is None:
            return wanda(weight, pattern, sparsity, inputs)
        return sparsegpt(weight, pattern, sparsity, compensation)

    laid = {name: laid_out(weight.detach().float()) for name, weight in weights.items()}
    return {name: laid_back(pruned(weight), weights[name].shape) for name, weight in laid.items()}


def check_weight(name: str, weight: Tensor) -> None:
    """InputError: a weight that cannot be pruned, by any pattern."""
    if weight.dim() < 2 or weight.numel() == 0:
        raise InputError(
            f"{name}: a weight to prune has dimensions [out, channels…] and elements, not {list(weight.shape)}"
        )
    if not bool((weight.detach().abs() <= _LARGEST).all()):
        raise InputError(
            f"{name}: the weight holds NaN, infinity or more than 1e30: leave this layer out, or load the weights again"
        )
    if not bool(weight.any()):
        raise InputError(f"{name}: all of the weight is 0: leave this layer out, or load the weights again")


def inputs_of(weights: Mapping[str, Tensor], method: str, statistics: Statistics | None) -> Inputs:
    """What meets all of ``weights`` ``[out, channels, window…]``, as ``method`` looks at it. Errors: see `prune`."""
    names = ", ".join(weights)
    if statistics is None:
        raise OptionError(
            f"{names}: {method} needs to know the activations: give a calibration that these layers ran in (effc.calibrate)"
        )
    for name, weight in weights.items():
        check_fit(statistics, name, *weight.shape[:2])
    return Inputs.of(statistics, names)
