"""Weights, some of which share one activation, factorized by the options of the pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from effc.compiler.compress.form import Form
from effc.compiler.compress.inputs import Inputs, check_fit, sensitivity_of
from effc.compiler.compress.low_rank.convolution import ConvolutionSpectrum
from effc.compiler.compress.low_rank.layer import Layer
from effc.compiler.compress.low_rank.ranks import MULTIPLE, Ranks, allocate
from effc.compiler.compress.low_rank.spectrum import Spectrum
from effc.compiler.ir.errors import InputError, OptionError
from effc.passes.low_rank import LowRank

#: Weights that share a factor, by name, and their ranks.
Choice = tuple[tuple[str, ...], Ranks]

#: Channels count as at least this share more than the mean one: gradients are known from few rows.
_LEAST_SENSITIVITY = 0.01


class Spectra:
    """Of ``layers`` by name, as ``options`` look at them; each is made once.

    InputError: a weight with NaN or infinity, or of zeros only; statistics of another number of channels.
    """

    def __init__(self, layers: Mapping[str, Layer], options: LowRank) -> None:
        self.layers, self.options = layers, options
        self._known: dict[tuple[str, ...], Spectrum | ConvolutionSpectrum] = {}
        for name, layer in layers.items():
            _check(name, layer)

    def of(self, names: Sequence[str]) -> Spectrum | ConvolutionSpectrum:
        """Of weights that share a factor; a convolution shares none."""
        key = tuple(names)
        if key not in self._known:
            layers, inputs = [self.layers[name] for name in key], self._inputs(key[0])
            scales = [self._scales[name] for name in key if name in self._scales]
            if layers[0].convolution:
                (layer,) = layers
                self._known[key] = ConvolutionSpectrum(layer, inputs, *scales)
            else:
                weights = [layer.weight for layer in layers]
                self._known[key] = Spectrum.of(weights, inputs, scales if len(scales) == len(weights) else None)
        return self._known[key]

    @cached_property
    def _scales(self) -> Mapping[str, Tensor]:
        """What errors of outputs count, ``[out]``, where their sensitivity is known: such that an output that is lost costs 1 in the mean
        of these layers, which is what it costs any layer of which nothing is known.
        """
        found: dict[str, Tensor] = {}
        costs = []
        for name, layer in self.layers.items():
            inputs, sensitivity = self._inputs(name), sensitivity_of(self.options.statistics(name), name)
            if inputs is not None and sensitivity is not None:
                found[name] = (sensitivity + _LEAST_SENSITIVITY * sensitivity.mean()).sqrt()
                costs.append(_squares(layer, inputs, found[name]))
        return {name: scale / (sum(costs) / len(costs)) ** 0.5 for name, scale in found.items()} if any(costs) else {}

    def _inputs(self, name: str) -> Inputs | None:
        statistics = self.options.statistics(name) if self.options.method == "output" else None
        if statistics is None:
            return None
        layer = self.layers[name]
        check_fit(statistics, name, len(layer.weight), layer.groups * layer.weight.shape[1])
        return Inputs.of(statistics, name)


def choose(groups: Sequence[Sequence[str]], spectra: Spectra, options: LowRank) -> dict[str, Choice | None]:
    """The ranks of each weight of ``groups``; those of a group meet one activation. None where factors would hold as many numbers as the
    weight, or their error is not worth it.

    OptionError: a rank above a weight's full one, or fewer parameters than the smallest ranks need.
    """
    if options.rank is not None or options.rank_ratio is not None:
        return {name: asked_ranks(name, spectra.layers[name], options) for group in groups for name in group}
    ways = [_ways(group) for group in groups]
    curves = [[[spectra.of(names).curve() for names in way] for way in choices] for choices in ways]
    found: dict[str, Choice | None] = {}
    for choices, (way, chosen) in zip(ways, allocate(curves, options.kept), strict=True):
        for names, ranks in zip(choices[way], chosen, strict=True):
            found |= dict.fromkeys(names, None if ranks is None else (tuple(names), ranks))
    return found


def factorize(choices: Sequence[Choice], spectra: Spectra, dtypes: Mapping[str, torch.dtype]) -> dict[str, Form]:
    """The factors of weights by ``choices``, each in the dtype of its weight (that of the first where one is shared)."""
    found: dict[str, Form] = {}
    for names, ranks in choices:
        found |= zip(names, spectra.of(names).factors(ranks, dtypes[names[0]]), strict=True)
    return found


def asked_ranks(name: str, layer: Layer, options: LowRank) -> Choice | None:
    """The ranks that ``options`` ask for, by ``rank`` or ``rank_ratio``; None where they save nothing."""
    full = layer.full_rank
    if options.rank is not None and options.rank > full:
        raise OptionError(
            f"option 'passes': low_rank: rank={options.rank} is above the full rank of {name}, {list(layer.weight.shape)}: ask for at most "
            f"{full}, or name it in 'skip'"
        )
    if layer.windowed:
        first, second = (min(_asked(side, options), side) for side in layer.sides)
        ranks = Ranks("tucker", (first, second))
    else:
        ranks = Ranks("product", (_asked(full, options),))
    return ((name,), ranks) if layer.size(ranks) < layer.weight.numel() else None


def _asked(full: int, options: LowRank) -> int:
    """The rank of what has ``full``."""
    if options.rank is not None:
        return options.rank
    assert options.rank_ratio is not None, "one of the two is given"
    return max(round(options.rank_ratio * full / MULTIPLE), 1) * MULTIPLE


def _ways(group: Sequence[str]) -> list[list[Sequence[str]]]:
    """Which weights of one activation may share a factor: none, or all."""
    apart: list[Sequence[str]] = [[name] for name in group]
    return [apart] if len(group) == 1 else [apart, [group]]


def _squares(layer: Layer, inputs: Inputs, scales: Tensor) -> float:
    """Of the scaled output."""
    if layer.convolution:
        return ConvolutionSpectrum(layer, inputs, scales).squares
    return inputs.error(layer.weight * scales.float()[:, None])


def _check(name: str, layer: Layer) -> None:
    if not bool(layer.weight.isfinite().all()):
        raise InputError(f"{name}: the weight holds NaN or infinity: name it in 'skip', or load the weights again")
    if not bool(layer.weight.any()):
        raise InputError(f"{name}: the weight holds zeros only, of which there are no factors: name it in 'skip'")
