"""How much each unit of a group matters, so that units of all groups can be compared.

``"magnitude"``: the squared norms of its parts of all weights, as shares of each weight's. With a calibration, the error in the outputs of
the layers that read it: what its activation varies (FLAP: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language
Models", AAAI 2024), for the mean goes into the bias (`repair.py`); ``"sparsegpt"``: what is left of that where the other channels make up
for it, ``1 / [C⁻¹]`` (Hassibi and Stork 1992).

Where calibration knows what the model's output shows of errors, that is what they count, for each element that goes with the unit: the
model is off by ``½ E (g · e)²``, Fisher's information (Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018;
Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019). ``g · e`` is the sum over all that goes with the unit: all
positions of a sample, all layers that read it, all channels of a head; so LLM-Pruner (Ma et al., NeurIPS 2023) and EfficientLLM (Xing et
al., 2025) take the least parts of a model that can go alone. As in the latter, what is chosen is told by gradients of the whole model, and
what makes up for it (`repair.py`) by the moments of each layer. Where calibration could not tell samples apart, or saw few, errors of a
layer's outputs count by the squares of their gradients, each alone. Without gradients, as shares of the energy of these outputs, and of all
weights, divided by the mean over the group, as DepGraph's implementation does for ranking across layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from effc.compiler.compress.channels.groups import Axis, Group
from effc.compiler.compress.channels.repair import covariance
from effc.compiler.compress.inputs import Inputs
from effc.passes.sparsity import Method

_TINY = torch.finfo(torch.float64).tiny


def saliency(group: Group, weights: Mapping[str, Tensor], inputs: Mapping[str, Inputs], method: Method) -> Tensor:
    """Of each unit, float64 ``[units]``, their mean 1 (all 0 where nothing matters). ``weights``: by name; ``inputs``: what meets them."""
    found = torch.zeros(len(group.roots), dtype=torch.float64)
    for axis in group.axes:
        weight = weights[axis.site.name]
        if method == "magnitude":
            energies = weight.detach().movedim(axis.dim, 0).flatten(1).double().square().sum(1)
            group.add(found, axis, energies / energies.sum().clamp(min=_TINY))
        elif axis.reads and axis.site.name in inputs:
            taps, met = _taps(axis, weight), inputs[axis.site.name]
            energy = ((met.moment.double() @ taps.flatten(1)) * taps.flatten(1)).sum()
            group.add(found, axis, taps.square().sum((1, 2)) * _lost(met, method) / energy.clamp(min=_TINY))
    return found / found.mean().clamp(min=_TINY)


def by_output(
    group: Group,
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Inputs],
    method: Method,
    sensitivities: Mapping[str, Tensor],
) -> Tensor:
    """What the model's output shows of the loss of each unit, for each element that goes with it: float64 ``[units]``. ``sensitivities``:
    ``[out]``, of the layers that ``inputs`` meet.
    """
    found = torch.zeros(len(group.roots), dtype=torch.float64)
    for axis in group.axes:
        if axis.reads and axis.site.name in inputs:
            taps = _taps(axis, weights[axis.site.name]).square().sum(2)
            group.add(found, axis, taps @ sensitivities[axis.site.name] * _lost(inputs[axis.site.name], method))
    return found / _elements(group, weights)


def by_sample(
    group: Group,
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Inputs],
    method: Method,
    effects: Mapping[str, Tensor],
) -> Tensor:
    """What the model's output shows of the loss of each unit as a whole, for each element that goes with it: float64 ``[units]``.
    ``effects``: ``[samples, channels]``, of the layers that ``inputs`` meet.
    """
    samples = len(next(iter(effects.values())))
    found = torch.zeros(len(group.roots), samples, dtype=torch.float64)
    for axis in group.axes:
        if axis.reads and axis.site.name in inputs:
            met = inputs[axis.site.name]
            left = _lost(met, method) / covariance(met).diagonal().clamp(min=_TINY)
            group.add(found, axis, (effects[axis.site.name] * left.clamp(max=1).sqrt()).T)
    return found.square().mean(1) / _elements(group, weights)


def _elements(group: Group, weights: Mapping[str, Tensor]) -> Tensor:
    """How many elements of all weights go with each unit: float64 ``[units]``."""
    found = torch.zeros(len(group.roots), dtype=torch.float64)
    for axis in group.axes:
        weight = weights[axis.site.name]
        group.add(found, axis, torch.full((weight.shape[axis.dim],), weight.numel() / weight.shape[axis.dim]))
    return found


def _taps(axis: Axis, weight: Tensor) -> Tensor:
    """``[channels, out, window]``."""
    channels = axis.site.by_channels(weight).double().transpose(0, 1)
    found: Tensor = channels.reshape(*channels.shape[:2], -1)
    return found


def _lost(inputs: Inputs, method: Method) -> Tensor:
    """The squared error of each channel alone, behind what makes up for it: ``[channels]``."""
    if method != "sparsegpt":
        return covariance(inputs).diagonal()
    precision: Tensor = torch.linalg.inv(covariance(inputs, damped=True)).diagonal()
    return precision.reciprocal()
