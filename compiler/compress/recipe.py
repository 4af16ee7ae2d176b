"""``quantize``: weights that share one activation, by a scheme and a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from effc.compiler.compress import awq, smoothquant
from effc.compiler.compress.clipping import grid_of
from effc.compiler.compress.compensation import Compensation
from effc.compiler.compress.double import double_quantized
from effc.compiler.compress.dual import dual_grained
from effc.compiler.compress.finequant import coarsened
from effc.compiler.compress.gptq import compensated
from effc.compiler.compress.inputs import Inputs, check_fit
from effc.compiler.compress.nearest import nearest
from effc.compiler.compress.quantized import QuantizedWeight
from effc.compiler.compress.smoothing import per_element
from effc.compiler.ir.calibration import Statistics
from effc.compiler.ir.errors import InputError, OptionError
from effc.compiler.ir.quantization import Recipe, Scheme

#: Weights up to here stay finite under any smoothing and grid.
_LARGEST = 1e30


def quantize(
    weights: Mapping[str, Tensor], scheme: Scheme, recipe: Recipe, statistics: Statistics | None = None
) -> dict[str, QuantizedWeight]:
    """Each of ``weights`` by name: floats ``[out, channels, window…]``, all multiplied with the one activation of ``statistics``, so all
    have one smoothing. With ``"finequant"`` the scheme of a result may have coarser groups than ``scheme``.

    OptionError: groups that do not divide a weight's sum; a smoothing or rounding that needs calibration, and ``statistics`` None.
    InputError: a weight without elements, or with NaN, infinity or more than 1e30; statistics of another number of channels, or with NaN
    or infinity.
    Weights and activations of 0 or near it are no error: see `LEAST_SCALE` of grid.py and `LEAST_SHARE` of smoothing.py.
    """
    flat = {name: _checked(name, weight, scheme) for name, weight in weights.items()}
    inputs = None if statistics is None else _inputs(weights, statistics)
    factors = None
    if recipe.smoothing != "none":
        inputs, matrices = _needed(inputs, weights, recipe.smoothing), list(flat.values())
        if recipe.smoothing == "awq":
            factors = awq.scales(matrices, scheme, inputs, recipe.rounding)
        else:
            factors = smoothquant.scales(matrices, scheme, inputs)
        inputs = inputs.over(factors)
    compensation = Compensation.of(_needed(inputs, weights, "gptq")) if recipe.rounding == "gptq" else None
    return {name: _quantized(weight, scheme, recipe, inputs, factors, compensation) for name, weight in flat.items()}


def _quantized(
    weight: Tensor,
    scheme: Scheme,
    recipe: Recipe,
    inputs: Inputs | None,
    factors: Tensor | None,
    compensation: Compensation | None,
) -> QuantizedWeight:
    smoothing = None if factors is None else per_element(factors, weight.shape[1])
    scaled = weight if smoothing is None else weight * smoothing
    # GPTQ moves the error to where it costs least: a range that favours some channels is the worse for it.
    weighted = None if compensation is not None else inputs
    importance = None if weighted is None else per_element(weighted.mean_square, weight.shape[1])
    if recipe.grouping == "finequant":
        scheme = coarsened(scaled, scheme, recipe.clipping, importance)
    grid = grid_of(scaled, scheme, recipe.clipping, importance)
    if scheme.scales == "double":
        grid = double_quantized(grid)
    elif scheme.scales == "dual":
        grid = dual_grained(scaled, grid, importance)
    found = nearest(scaled, grid) if compensation is None else compensated(scaled, grid, compensation)
    return replace(found, smoothing=smoothing)


def _checked(name: str, weight: Tensor, scheme: Scheme) -> Tensor:
    if weight.dim() < 2 or weight.numel() == 0:
        raise InputError(
            f"{name}: a weight to quantize has dimensions [out, in…] and elements, not {list(weight.shape)}"
        )
    flat = weight.detach().float().reshape(len(weight), -1)
    if not bool((flat.abs() <= _LARGEST).all()):
        raise InputError(
            f"{name}: the weight holds NaN, infinity or more than 1e30: leave this layer out, or load the weights again"
        )
    if scheme.group and flat.shape[1] % scheme.group:
        raise OptionError(
            f"{name}: groups of {scheme.group} do not divide its sum over {flat.shape[1]} elements: choose a divisor, or 0 for one group"
        )
    return flat


def _inputs(weights: Mapping[str, Tensor], statistics: Statistics) -> Inputs:
    for name, weight in weights.items():
        check_fit(statistics, name, *weight.shape[:2])
    return Inputs.of(statistics, ", ".join(weights))


def _needed(inputs: Inputs | None, weights: Sequence[str] | Mapping[str, Tensor], what: str) -> Inputs:
    if inputs is None:
        raise OptionError(
            f"{', '.join(weights)}: {what} needs to know the activations: give a calibration that these layers ran in (effc.calibrate)"
        )
    return inputs
