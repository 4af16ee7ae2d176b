"""The planner: at each site one candidate, so that the whole model is fastest within its budgets, or least in error.

Estimated errors of sites are taken as independent, so their squares add up, and times of sites add up: both are proxies, by which a
knapsack is solved (`knapsack`). The whole model decides, under the named metric and by the clock: the first plan takes what estimates say
that the budget allows (all that there is, where the metric is another than theirs); while plans are over a budget, what is allowed is cut,
and once one is not, it is sought between that one's and the last that was. A candidate is taken only where even the slow end of its range
is faster than dense is, or where its weights are smaller and a size is asked for. One that is proposed by a prediction is measured in the
first plan that takes it, and counts as it was measured from then on: no site is left with one that has turned out slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Context

from effc.compiler.ir.budgets import Budgets
from effc.compiler.ir.candidate import Candidate, Latency
from effc.compiler.ir.errors import BudgetError
from effc.compiler.ir.plan import Plan
from effc.compiler.ir.site import Site
from effc.costmodel.choices import Choices, Selection, choices_of
from effc.costmodel.choices import Price as Price
from effc.costmodel.hardware import Hardware
from effc.costmodel.neighbours import Link, edge
from effc.costmodel.reasons import decisions

#: Plans that are verified, besides the exact one.
_ROUNDS = 7
#: Allowances that are tried, of which many give a plan that is known; and the ratio of two that are not told apart.
_STEPS, _CLOSE = 30, 1.02
#: Further ones, where what was measured meanwhile makes another plan the fastest.
_SETTLING = 2
#: What another plan is not verified for: a smaller gain, as a share of the time; or where so much of the budget is spent.
_WORTH, _NEAR = 0.01, 0.85
#: The metric that errors of sites are estimated by, and the allowance to begin with under it, in budgets; under any other it is infinite.
ESTIMATED, _FIRST = "relative_l2", 1.2
#: Of the allowance that should spend all of the budget, what is tried.
_AIM = 0.97


@dataclass(frozen=True)
class Verified:
    """Of a plan: ``error`` by the metric (NaN counts as over any budget), with its ``margin`` as in `Plan`; and ``seconds`` of a call,
    where they are asked for. ``sites``: what proposed candidates that it takes were measured to take there, by the number of the site.
    """

    error: float
    seconds: float = math.nan
    margin: float | None = None
    sites: Mapping[int, Latency] = field(default_factory=dict)

    @property
    def bound(self) -> float:
        """What a budget is compared with: the error and its margin."""
        return self.error + (self.margin or 0.0)


@dataclass(frozen=True)
class Goal:
    """What a plan is for; ``model``, ``calibration``, ``hardware``, ``metric``, ``budgets`` as in `Plan`. ``verify(plan)`` runs the whole
    model. ``seconds``: of a call as the model is, needed for a budget of latency; ``size``: bytes of its weights, for one of size.
    """

    model: str
    calibration: str
    hardware: str
    metric: str
    budgets: Budgets
    verify: Callable[[Plan], Verified]
    seconds: float = math.nan
    size: int = 0

    @property
    def excess(self) -> int:
        """Bytes that weights must become smaller by."""
        return 0 if self.budgets.size is None else max(0, self.size - self.budgets.size)


class Planner:
    """Plans by the predictions of ``price``; with ``hardware``, what neighbouring sites cost together counts too."""

    def __init__(self, price: Price, hardware: Hardware | None = None) -> None:
        self.price, self.hardware = price, hardware

    def plan(
        self,
        sites: Sequence[Site],
        candidates: Mapping[str, Sequence[Candidate]],
        goal: Goal,
        links: Sequence[Link] = (),
    ) -> Plan:
        """The plan whose budgets hold. ``candidates`` by site name, the dense one first; ``links``: which sites read which.

        BudgetError: none is found whose budgets hold; the text says what is the best that was reached.
        """
        between = []
        if self.hardware is not None:
            named = [candidates[site.name] for site in sites]
            found = (edge(link, named[link.writer], named[link.reader], self.hardware) for link in links)
            between = [e for e in found if e is not None]
        at = choices_of(sites, candidates, self.price)
        search = _Search(Choices(sites, at, between, smaller=goal.budgets.size is not None), goal)
        return search.least_error() if goal.budgets.least_error else search.least_latency()


def _between(kept: float, broken: float, aimed: float) -> float:
    """An allowance to try next: a little less than ``aimed``, which would spend all of the budget if the metric were in proportion to the
    estimates; half-way between what kept the budget and what broke it where that says nothing.
    """
    aimed = aimed * _AIM if math.isfinite(aimed) else 0.0
    if broken == math.inf:
        return min(max(aimed, 2 * kept), 16 * kept)
    if not kept:
        return min(aimed, 0.7 * broken) or 0.5 * broken
    half = math.sqrt(kept * broken)
    return aimed if math.sqrt(kept * half) < aimed < math.sqrt(half * broken) else half


def _up(value: float) -> str:
    """Three digits, rounded up: a budget of what is written holds."""
    if not math.isfinite(value):
        return f"{value:g}"
    return str(Context(prec=3, rounding=ROUND_CEILING).create_decimal(value).normalize())


@dataclass
class _Search:
    """``tried``: what has been verified. ``tightened``: how many of these broke a budget."""

    choices: Choices
    goal: Goal
    tried: dict[tuple[int, ...], Verified] = field(default_factory=dict)
    tightened: int = 0

    # -- least latency within an error ----------------------------------------------------------------------------------
    def least_latency(self) -> Plan:
        """Within the accuracy budget, and a size where one is asked for."""
        budget = self.goal.budgets.accuracy
        assert budget is not None, "without an accuracy budget the error is to be least"
        best = self._least_error()
        kept, broken = self.choices.error(best), math.inf  # allowances whose plans kept the budget and broke it
        if self.goal.excess:
            self._demand(best)
        accurate = {best.taken: best}
        if not self.goal.excess:  # what has no error either may turn out slower
            dense = Selection((0,) * len(self.choices.at), 0.0)
            accurate[dense.taken] = dense
        allowance = _FIRST * budget if self.goal.metric == ESTIMATED else math.inf
        verified = 0
        for _ in range(_STEPS if budget else 0):
            plan = self.choices.fastest(allowance, self.goal.excess)
            if plan is None:
                break
            known = plan.taken in accurate or plan.taken in self.tried
            if not known and verified == _ROUNDS:
                break
            verified += not known
            aimed, spent = math.nan, 0.0
            if not known:
                spent = self._verified(plan).bound / budget
                aimed = self.choices.error(plan) / spent if spent > 0 else math.inf
            if plan.taken in accurate or self._accurate(plan):
                best, kept = plan, allowance
                accurate[plan.taken] = plan
            else:
                broken, self.tightened = min(allowance, self.choices.error(plan)), self.tightened + (not known)
                if aimed < kept and not self._settled(kept, accurate):
                    kept = 0.0
            settled = self._settled(kept, accurate)
            if (kept == math.inf and known) or (_NEAR <= spent <= 1 and settled) or broken < _CLOSE * kept:
                break
            if kept < math.inf:  # else what was measured may change the choice
                if not self._worthwhile(best, broken):
                    break
                allowance = kept if allowance == kept and not settled else _between(kept, broken, aimed)
        for _ in range(_SETTLING if budget else 0):  # by what has been measured since
            plan = self.choices.fastest(kept, self.goal.excess)
            if plan is None or plan.taken in self.tried or self._settled(kept, accurate) or not self._accurate(plan):
                break
            accurate[plan.taken] = plan
        while budget:  # and no site is left with what has turned out slower
            plan = min(map(self._without_slower, accurate.values()), key=self._merit)
            if plan.taken in self.tried or not self._accurate(plan):
                break
            accurate[plan.taken] = plan
        return self._plan(min(accurate.values(), key=self._merit))

    def _settled(self, allowance: float, accurate: Mapping[tuple[int, ...], Selection]) -> bool:
        """Whether the plan of an ``allowance`` is one that keeps the budget, or not worth another verification: what was measured since may
        have made it another.
        """
        plan = self.choices.fastest(allowance, self.goal.excess)
        if plan is None or plan.taken in accurate:
            return plan is not None
        least = min(map(self.choices.seconds, accurate.values()))
        return self.choices.seconds(plan) >= (1 - _WORTH) * least

    def _merit(self, selection: Selection) -> tuple[float, float, int]:
        """Less is better: of time, of error, and of sites that change."""
        changed = sum(number > 0 for number in selection.taken)
        return self.choices.seconds(selection), self.choices.error(selection), changed

    def _without_slower(self, selection: Selection) -> Selection:
        """Dense where what is taken was measured to be no faster."""
        taken = (number if self.choices.may(site, number) else 0 for site, number in enumerate(selection.taken))
        return replace(selection, taken=tuple(taken))

    def _worthwhile(self, best: Selection, broken: float) -> bool:
        """Whether what an allowance up to ``broken`` may give is worth another plan's verification."""
        bound = self.choices.fastest(broken, self.goal.excess)
        least = self.choices.seconds(best)
        return bound is not None and self.choices.seconds(bound) < (1 - _WORTH) * least

    # -- least error within a latency -----------------------------------------------------------------------------------
    def least_error(self) -> Plan:
        """Within the latency and the size, where they are asked for, and the accuracy budget."""
        best = self._within_latency() if self.goal.budgets.latency is not None else self._least_error()
        self._demand(best)
        return self._plan(best)

    def _within_latency(self) -> Selection:
        """Of least error among plans that were fast enough, measured."""
        budget = self.goal.budgets.latency
        assert budget is not None, "a latency is sought only where one is asked for"
        beside = self.goal.seconds - self._exact_seconds()  # seconds of a call that no site takes
        limit, kept, broken = budget - beside, 0.0, math.inf  # seconds of all sites
        best: Selection | None = None
        for _ in range(_ROUNDS):
            plan = self.choices.closest(limit, self.goal.excess)
            if plan is None:
                break
            new = plan.taken not in self.tried
            found = self._verified(plan)
            if not found.seconds <= budget:
                broken, self.tightened = min(limit, self.choices.seconds(plan)), self.tightened + new
            elif new:
                best, kept = plan, limit
            if broken == math.inf or (found.seconds <= budget and not new):
                break
            limit = (kept + broken) / 2 if kept else broken * min(0.97, budget / found.seconds)
        if best is not None:
            return best
        fastest = self.choices.fastest(math.inf, self.goal.excess)
        if fastest is None:
            raise self._too_large()
        found = self._verified(fastest)
        if not found.seconds <= budget:
            raise self._out_of_reach(fastest, f"its call takes {1e3 * found.seconds:.4g} ms")
        return fastest

    # -- both -------------------------------------------------------------------------------------------------------------
    def _least_error(self) -> Selection:
        """Within the size, and the fastest of what is alike in error. BudgetError: no candidates are that small."""
        found = self.choices.closest(math.inf, self.goal.excess)
        if found is None:
            raise self._too_large()
        return found

    def _exact_seconds(self) -> float:
        return sum(found[0].latency.seconds for found in self.choices.at)

    def _accurate(self, selection: Selection) -> bool:
        """Whether the accuracy budget holds: for exact code always, which differs from eager by rounding alone."""
        found, budget = self._verified(selection).bound, self.goal.budgets.accuracy
        return math.isfinite(found) and (self.choices.error(selection) == 0.0 or budget is None or found <= budget)

    def _demand(self, selection: Selection) -> None:
        """BudgetError: the accuracy budget does not hold."""
        if not self._accurate(selection):
            found = self._verified(selection)
            reached = f"its {self.goal.metric} is {_up(found.error)}"
            if found.margin is not None:
                reached = f"its {self.goal.metric} with the margin is {_up(found.bound)} ({found.error:.3g} ± {found.margin:.1g})"
            raise self._out_of_reach(selection, reached)

    def _verified(self, selection: Selection) -> Verified:
        if selection.taken not in self.tried:
            found = self.tried[selection.taken] = self.goal.verify(self._bare(selection))
            self.choices = self.choices.timed(selection, found.sites)
        return self.tried[selection.taken]

    def _bare(self, selection: Selection) -> Plan:
        """The plan, with nothing measured in it."""
        goal = self.goal
        made = decisions(self.choices, selection)
        size = goal.size - self.choices.saved(selection) if goal.size else None
        return Plan(goal.model, goal.calibration, goal.hardware, goal.metric, goal.budgets, None, made, size=size)

    def _plan(self, selection: Selection) -> Plan:
        verified = self._verified(selection)
        measured = verified.error
        plan, notes = self._bare(selection), []
        if self.tightened:
            notes.append(f"tightened {self.tightened} times, because the whole model was over the budget")
        if selection.gap:
            notes.append(
                f"the choice is within {100 * selection.gap:.1g} % of the best by the estimates: there was no time to prove more"
            )
        if plan.exact and not measured <= (plan.budgets.accuracy or 0.0):
            notes.append(
                f"the plan is exact: its {plan.metric} of {measured:.3g} against eager is the rounding of sums in another order"
            )
        return replace(plan, notes=tuple(notes)).found(measured, verified.margin)

    # -- refusals -----------------------------------------------------------------------------------------------------------
    def _out_of_reach(self, nearest: Selection, why: str) -> BudgetError:
        goal = self.goal
        sizes = f", its weights take {(goal.size - self.choices.saved(nearest)) / 1e6:.3g} MB" if goal.excess else ""
        return BudgetError(
            f"no plan keeps {goal.budgets.describe(goal.metric)}: of the nearest that was found, {why}{sizes}. Ask for that much, or let "
            "more be tried where 'passes' switches something off"
        )

    def _too_large(self) -> BudgetError:
        goal = self.goal
        smallest = self.choices.smallest()
        return BudgetError(
            f"no plan keeps {goal.budgets.describe(goal.metric)}: the weights take {goal.size / 1e6:.4g} MB, and "
            f"{(goal.size - self.choices.saved(smallest)) / 1e6:.4g} MB with every weight in the smallest form that was tried"
        )
