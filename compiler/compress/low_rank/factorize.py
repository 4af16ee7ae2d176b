"""Weights, some of which share one activation, factorized by the options of the pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.low_rank.ranks import MULTIPLE, Curve, allocate
from effc.compiler.compress.low_rank.spectrum import Spectrum
from effc.compiler.ir.errors import InputError, OptionError
from effc.passes.low_rank import LowRank

#: Weights that share a factor, by name, and its rank.
Choice = tuple[tuple[str, ...], int]


class Spectra:
    """Of ``matrices``, float32 ``[out, in]`` by name, as ``options`` look at them; each is made once.

    InputError: a matrix with NaN or infinity, or of zeros only.
    """

    def __init__(self, matrices: Mapping[str, Tensor], options: LowRank) -> None:
        self.matrices, self.options = matrices, options
        self._known: dict[tuple[str, ...], Spectrum] = {}
        for name, matrix in matrices.items():
            _check(name, matrix)

    def of(self, names: Sequence[str]) -> Spectrum:
        """Of weights that share a factor."""
        key = tuple(names)
        if key not in self._known:
            statistics = self.options.statistics(key[0]) if self.options.method == "output" else None
            inputs = None if statistics is None else Inputs.of(statistics, key[0])
            self._known[key] = Spectrum.of([self.matrices[name] for name in key], inputs)
        return self._known[key]

    def curve(self, names: Sequence[str]) -> Curve:
        out, width = sum(len(self.matrices[name]) for name in names), self.matrices[names[0]].shape[1]
        return Curve(self.of(names).errors(), out + width, out * width)


def choose(groups: Sequence[Sequence[str]], spectra: Spectra, options: LowRank) -> dict[str, Choice | None]:
    """The rank of each weight of ``groups``; those of a group meet one activation. None where factors would hold as many numbers as the
    weight, or their error is not worth it.

    OptionError: a rank above a weight's full one, or fewer parameters than the smallest ranks need.
    """
    if options.rank is not None or options.rank_ratio is not None:
        return {name: _fixed(name, spectra.matrices[name], options) for group in groups for name in group}
    ways = [_ways(group) for group in groups]
    curves = [[[spectra.curve(names) for names in way] for way in choices] for choices in ways]
    found: dict[str, Choice | None] = {}
    for choices, (way, ranks) in zip(ways, allocate(curves, options.kept), strict=True):
        for names, rank in zip(choices[way], ranks, strict=True):
            found |= dict.fromkeys(names, None if rank is None else (tuple(names), rank))
    return found


def factorize(choices: Sequence[Choice], spectra: Spectra, dtypes: Mapping[str, torch.dtype]) -> dict[str, Factors]:
    """The factors of weights by ``choices``, each in the dtype of its weight (that of the first where one is shared)."""
    found: dict[str, Factors] = {}
    for names, rank in choices:
        found |= zip(names, spectra.of(names).factors(rank, dtypes[names[0]]), strict=True)
    return found


def _fixed(name: str, matrix: Tensor, options: LowRank) -> Choice | None:
    """The rank that was asked for; None where it saves nothing."""
    full = min(matrix.shape)
    rank = options.rank
    if rank is None:
        assert options.rank_ratio is not None, "one of the two is given"
        rank = max(round(options.rank_ratio * full / MULTIPLE), 1) * MULTIPLE
    elif rank > full:
        raise OptionError(
            f"option 'passes': low_rank: rank={rank} is above the full rank of {name}, {list(matrix.shape)}: ask for at most {full}, or "
            "name it in 'skip'"
        )
    return ((name,), rank) if rank * sum(matrix.shape) < matrix.numel() else None


def _ways(group: Sequence[str]) -> list[list[Sequence[str]]]:
    """Which weights of one activation may share a factor: none, or all."""
    apart: list[Sequence[str]] = [[name] for name in group]
    return [apart] if len(group) == 1 else [apart, [group]]


def _check(name: str, matrix: Tensor) -> None:
    if not bool(matrix.isfinite().all()):
        raise InputError(f"{name}: the weight holds NaN or infinity: name it in 'skip', or load the weights again")
    if not bool(matrix.any()):
        raise InputError(f"{name}: the weight holds zeros only, of which there are no factors: name it in 'skip'")
