"""The candidates of all sites with their best schedules, as the quantities of a knapsack: seconds, squared errors, bytes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from effc.compiler.ir.candidate import Candidate, Latency
from effc.compiler.ir.site import Site
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.knapsack import Edge, Quantity, least

#: ``price(spec, values of its symbols)``: predicted time of one call.
Price = Callable[[KernelSpec, Sequence[int]], Latency]
#: By how much, as a share, the second choice may be worse than the first in what the first was made for.
_EQUAL = 1e-9


@dataclass(frozen=True)
class Choice:
    """A candidate with the best schedule of each of its kernels. ``proposed``: as in `Candidate`, until it is measured."""

    candidate: Candidate
    kernels: tuple[KernelSpec, ...]
    latency: Latency
    proposed: bool = False

    @property
    def kind(self) -> tuple[object, ...]:
        """What predictions are off by alike: the pass, and which templates on which dtypes its kernels are. Ranks and shares of zeros are
        no other kind.
        """
        return (
            self.candidate.pass_name,
            frozenset((k.template, frozenset(o.dtype for o in k.operands)) for k in self.kernels),
        )

    @property
    def slow_end(self) -> float:
        return self.latency.seconds * (1 + self.latency.uncertainty)

    @staticmethod
    def of(candidate: Candidate, price: Price) -> Choice:
        """Its schedules by ``price``, where its latency is not measured."""
        if candidate.latency is not None:
            own = tuple(alternatives[0] for alternatives in candidate.kernels)
            return Choice(candidate, own, candidate.latency, candidate.proposed)
        kernels, total = [], Latency(0.0)
        for alternatives, symbols in zip(candidate.kernels, candidate.symbols, strict=True):
            priced = [(price(spec, symbols), spec) for spec in alternatives]
            latency, spec = min(priced, key=lambda p: p[0].seconds)  # the first of equals: the template's own choice
            kernels.append(spec)
            total = total + latency
        return Choice(candidate, tuple(kernels), total)


@dataclass(frozen=True)
class Selection:
    """``taken``: at each site the number of the choice. ``gap``: as in `knapsack.Chosen`."""

    taken: tuple[int, ...]
    gap: float


@dataclass(frozen=True)
class Choices:
    """``at``: of each site, the dense one first; ``edges``: between sites, over all choices. ``smaller``: whether a choice may be taken
    because its weights are smaller, however long it runs; else all that are taken are surely faster than dense, or
    proposed and predicted to be faster.
    """

    sites: Sequence[Site]
    at: Sequence[Sequence[Choice]]
    edges: Sequence[Edge] = ()
    smaller: bool = False

    def fastest(self, allowance: float, saved: int) -> Selection | None:
        """Of least time, with an estimated error of at most ``allowance`` and ``saved`` bytes less at least; None where none is."""
        return self._best(self._seconds, self._errors, [(self._errors, allowance**2), *self._kept(saved)])

    def closest(self, seconds: float, saved: int) -> Selection | None:
        """Of least estimated error, in at most ``seconds`` for all sites, with ``saved`` bytes less at least; None where none is."""
        return self._best(self._errors, self._seconds, [(self._seconds, seconds), *self._kept(saved)])

    def smallest(self) -> Selection:
        """Of smallest weights, and among those that are alike in it, of least estimated error."""
        saved = sum(
            max(self.at[site][n].candidate.saved for n in allowed) for site, allowed in enumerate(self._allowed)
        )
        found = self.closest(math.inf, saved)
        assert found is not None, "where smaller weights are asked for, every smaller candidate may be taken"
        return found

    def seconds(self, selection: Selection) -> float:
        """Of all sites, with what neighbours cost."""
        own = sum(self.at[site][n].latency.seconds for site, n in enumerate(selection.taken))
        return own + sum(edge.cost(selection.taken) for edge in self.edges)

    def error(self, selection: Selection) -> float:
        """Estimated, of the whole model: those of the sites are taken as independent."""
        return math.sqrt(sum(self.at[site][n].candidate.error ** 2 for site, n in enumerate(selection.taken)))

    def saved(self, selection: Selection) -> int:
        """Bytes of weights."""
        return sum(self.at[site][n].candidate.saved for site, n in enumerate(selection.taken))

    def may(self, site: int, number: int) -> bool:
        """Whether a choice may be taken at all."""
        choice, dense = self.at[site][number], self.at[site][0]
        seconds = choice.latency.seconds if choice.proposed else choice.slow_end
        worth = seconds < dense.latency.seconds or (self.smaller and choice.candidate.saved > 0)
        return number == 0 or (worth and math.isfinite(choice.candidate.error))

    def timed(self, selection: Selection, latencies: Mapping[int, Latency]) -> Choices:
        """With what was measured of the choices that are taken, by site; what is still proposed of their kinds is off by as much."""
        at = [list(choices) for choices in self.at]
        ratios: dict[tuple[object, ...], list[float]] = {}
        for site, latency in latencies.items():
            choice = at[site][selection.taken[site]]
            if choice.proposed and choice.latency.seconds > 0:
                ratios.setdefault(choice.kind, []).append(latency.seconds / choice.latency.seconds)
            at[site][selection.taken[site]] = replace(choice, latency=latency, proposed=False)
        off = {kind: statistics.median(found) for kind, found in ratios.items()}
        for choices in at:
            for number, choice in enumerate(choices):
                if choice.proposed and choice.kind in off:
                    seconds = choice.latency.seconds * off[choice.kind]
                    choices[number] = replace(choice, latency=replace(choice.latency, seconds=seconds))
        return replace(self, at=at)

    # -- as a knapsack ----------------------------------------------------------------------------------------------
    @cached_property
    def _allowed(self) -> list[list[int]]:
        return [[n for n in range(len(found)) if self.may(site, n)] for site, found in enumerate(self.at)]

    @cached_property
    def _seconds(self) -> Quantity:
        narrowed = (
            replace(
                e,
                left_classes=tuple(e.left_classes[n] for n in self._allowed[e.left]),
                right_classes=tuple(e.right_classes[n] for n in self._allowed[e.right]),
            )
            for e in self.edges
        )
        return Quantity(self._values(lambda c: c.latency.seconds), tuple(narrowed))

    @cached_property
    def _errors(self) -> Quantity:
        return Quantity(self._values(lambda c: c.candidate.error**2))

    def _kept(self, saved: int) -> list[tuple[Quantity, float]]:
        """Bytes that each site could save and does not, and how many these may be."""
        if saved <= 0:
            return []
        most = [max(c.candidate.saved for c in found) for found in self.at]
        values = tuple(
            tuple(float(most[site] - self.at[site][n].candidate.saved) for n in numbers)
            for site, numbers in enumerate(self._allowed)
        )
        return [(Quantity(values), float(sum(most) - saved))]

    def _values(self, value: Callable[[Choice], float]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(value(self.at[site][n]) for n in numbers) for site, numbers in enumerate(self._allowed))

    def _best(self, first: Quantity, second: Quantity, limits: list[tuple[Quantity, float]]) -> Selection | None:
        """Of least ``first``, and among those that are alike in it, of least ``second``, where the least is known."""
        found = least(first, limits)
        if found is None:
            return None
        finer = found
        if not found.gap:
            bound = first.total(found.options) * (1 + _EQUAL)
            finer = least(second, [*limits, (first, bound)]) or found
        taken = tuple(numbers[n] for numbers, n in zip(self._allowed, finer.options, strict=True))
        return Selection(taken, found.gap)


def choices_of(
    sites: Sequence[Site], candidates: Mapping[str, Sequence[Candidate]], price: Price
) -> list[list[Choice]]:
    """Of each site, from its ``candidates`` by name."""
    return [[Choice.of(c, price) for c in candidates[site.name]] for site in sites]
