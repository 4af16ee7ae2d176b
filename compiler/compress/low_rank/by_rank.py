"""Factors made as the options of ``passes={"low_rank": …}`` say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from effc.compiler.compress.compressor import Groups
from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.low_rank.ranks import MULTIPLE, Curve, allocate
from effc.compiler.compress.low_rank.rewrite import FactorRewriter
from effc.compiler.compress.low_rank.spectrum import Spectrum
from effc.compiler.compress.sites import WeightSite
from effc.compiler.compress.stored import StoredWeight, sampled_digest
from effc.compiler.ir.errors import InputError, OptionError
from effc.passes.low_rank import LowRank

#: Weights that share a factor, by name, and its rank.
Choice = tuple[tuple[str, ...], int]


class ByRank:
    """`Forms` of the weights that ``options`` fit. Ranks are chosen once for a weight, by the first graph that holds it: those of other
    graphs, and of new values, are the same.
    """

    rewriter = FactorRewriter

    def __init__(self, options: LowRank) -> None:
        self.options = options
        self._chosen: dict[str, Choice | None] = {}

    def refusal(self, site: WeightSite, weight: Tensor) -> str:
        if self.options.skips(site.name):
            return "option 'skip' names it"
        if "convolution" in site.kinds:
            return "only linear layers and embeddings are factorized"
        if self.options.rank is None and min(len(site.matrix(weight)), site.width) <= MULTIPLE:
            return f"its rank is {MULTIPLE} at most"
        if self.options.method == "output" and "linear" in site.kinds and self._inputs(site) is None:
            return "the calibration has not seen it"
        return ""

    def of(self, groups: Groups, weights: Mapping[str, Tensor]) -> Mapping[str, StoredWeight[Factors]]:
        sites = {site.name: site for group in groups for site in group}
        matrices = {name: _checked(site, weights[name]) for name, site in sites.items()}
        self._choose(groups, matrices)
        found: dict[str, StoredWeight[Factors]] = {}
        for names, rank in dict.fromkeys(c for name in sites if (c := self._chosen[name]) is not None):
            dtype = weights[names[0]].dtype
            factors = self._spectrum([sites[n] for n in names], matrices).factors(rank, dtype)
            for name, form in zip(names, factors, strict=True):
                found[name] = StoredWeight(form, sampled_digest(weights[name]))
        return found

    def summary(self, taken: Sequence[WeightSite]) -> str:
        chosen = {c for site in taken if (c := self._chosen[site.name]) is not None}
        ranks = [rank for _, rank in chosen]
        spread = f" of ranks {min(ranks)} to {max(ranks)}" if ranks else ""
        shared = sum(len(names) for names, _ in chosen if len(names) > 1)
        return f"low_rank: {len(taken)} weights are products{spread}, {shared} of them share a factor"

    # -- ranks ------------------------------------------------------------------------------------------------------
    def _choose(self, groups: Groups, matrices: Mapping[str, Tensor]) -> None:
        """Ranks of what has none yet."""
        new = [g for group in groups if (g := [site for site in group if site.name not in self._chosen])]
        if not new:
            return
        if self.options.rank is not None or self.options.rank_ratio is not None:
            for site in (site for group in new for site in group):
                self._chosen[site.name] = self._fixed(site, matrices[site.name])
            return
        ways = [_ways(group) for group in new]
        curves = [[[self._curve(unit, matrices) for unit in way] for way in choices] for choices in ways]
        for choices, (way, ranks) in zip(ways, allocate(curves, self.options.kept), strict=True):
            for unit, rank in zip(choices[way], ranks, strict=True):
                names = tuple(site.name for site in unit)
                self._chosen |= dict.fromkeys(names, None if rank is None else (names, rank))

    def _fixed(self, site: WeightSite, matrix: Tensor) -> Choice | None:
        """The rank that was asked for; None where it saves nothing."""
        full = min(matrix.shape)
        if self.options.rank is not None:
            rank = self.options.rank
            if rank > full:
                raise OptionError(
                    f"option 'passes': low_rank: rank={rank} is above the full rank of {site.name}, {list(matrix.shape)}: ask for at most "
                    f"{full}, or name it in 'skip'"
                )
        else:
            assert self.options.rank_ratio is not None, "one of the two is given"
            rank = max(round(self.options.rank_ratio * full / MULTIPLE), 1) * MULTIPLE
        return ((site.name,), rank) if rank * sum(matrix.shape) < matrix.numel() else None

    def _curve(self, sites: Sequence[WeightSite], matrices: Mapping[str, Tensor]) -> Curve:
        members = [matrices[site.name] for site in sites]
        out = sum(len(m) for m in members)
        errors = self._spectrum(sites, matrices).errors()
        return Curve(errors, out + sites[0].width, out * sites[0].width)

    def _spectrum(self, sites: Sequence[WeightSite], matrices: Mapping[str, Tensor]) -> Spectrum:
        return Spectrum.of([matrices[site.name] for site in sites], self._inputs(sites[0]))

    def _inputs(self, site: WeightSite) -> Inputs | None:
        """What meets the weight; None where only the weight counts."""
        calibration = self.options.calibration
        if self.options.method == "svd" or calibration is None or site.name not in calibration.sites:
            return None
        return Inputs.of(calibration.sites[site.name], site.name)


def _ways(group: Sequence[WeightSite]) -> list[list[Sequence[WeightSite]]]:
    """Which weights of one activation may share a factor: none, or all."""
    apart: list[Sequence[WeightSite]] = [[site] for site in group]
    return [apart] if len(group) == 1 else [apart, [group]]


def _checked(site: WeightSite, weight: Tensor) -> Tensor:
    """The weight ``[out, in]``, finite and not all zeros."""
    matrix = site.matrix(weight)
    if not bool(matrix.isfinite().all()):
        raise InputError(f"{site.name}: the weight holds NaN or infinity: name it in 'skip', or load the weights again")
    if not bool(matrix.any()):
        raise InputError(f"{site.name}: the weight holds zeros only, of which there are no factors: name it in 'skip'")
    return matrix
