"""The greedy planner: at each site the candidate that saves most time for its error, while the errors fit an allowance.

Estimated errors of sites are taken as independent, so their squares add up; that is a proxy. The whole model under the named
metric decides: the first plan takes the fastest candidate of each site; while plans are over the budget, the allowance is cut, and once
one is not, it is sought between that one's and the last that was. A candidate is taken only where even the slow end of its predicted
range is faster than dense is predicted to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from effc.compiler.ir.candidate import DENSE, Candidate, Latency
from effc.compiler.ir.plan import Decision, Plan
from effc.compiler.ir.site import Site
from effc.compiler.ir.spec import KernelSpec

#: ``price(spec, values of its symbols)``: predicted time of one call.
Price = Callable[[KernelSpec, Sequence[int]], Latency]

#: Plans that are verified, besides the exact one.
_ROUNDS = 7


@dataclass(frozen=True)
class Goal:
    """What a plan is for; fields as in `Plan`. ``verify(plan)`` runs the whole model and gives the metric (NaN counts as over)."""

    model: str
    calibration: str
    hardware: str
    metric: str
    budget: float
    verify: Callable[[Plan], float]


@dataclass(frozen=True)
class _Choice:
    """A candidate with the best schedule of each of its kernels."""

    candidate: Candidate
    kernels: tuple[KernelSpec, ...]
    latency: Latency

    @property
    def slow_end(self) -> float:
        return self.latency.seconds * (1 + self.latency.uncertainty)


class Planner:
    """Plans by the predictions of ``price``."""

    def __init__(self, price: Price) -> None:
        self.price = price

    def plan(self, sites: Sequence[Site], candidates: Mapping[str, Sequence[Candidate]], goal: Goal) -> Plan:
        """The plan of least predicted latency whose metric holds. ``candidates`` by site name, the dense one first."""
        choices = {site.name: [self._best(c) for c in candidates[site.name]] for site in sites}
        best = self._assemble(sites, choices, 0.0, goal)  # of exact candidates
        if not goal.budget:
            return _verified(best, goal.verify(best), 0)
        measured, kept, broken = math.nan, 0.0, math.inf  # allowances whose plans kept the budget and broke it
        tried = [best.decisions]
        allowance, tightened = math.inf, 0
        for _ in range(_ROUNDS):
            plan = self._assemble(sites, choices, allowance, goal)
            if plan.decisions in tried:
                break
            tried.append(plan.decisions)
            found = goal.verify(plan)
            if plan.exact or found <= goal.budget:
                best, measured, kept = plan, found, allowance
            else:
                broken, tightened = min(allowance, _spent(plan)), tightened + 1
            if kept == math.inf:
                break
            # A metric in proportion to the error meets the budget at their ratio; then half-way between what kept and what broke it.
            ratio = goal.budget / found if found > 0 else 0.5
            allowance = math.sqrt(kept * broken) if kept else broken * min(0.7, ratio)
        if math.isnan(measured):
            measured = goal.verify(best)
        return _verified(best, measured, tightened)

    def _best(self, candidate: Candidate) -> _Choice:
        if candidate.latency is not None:
            return _Choice(candidate, tuple(alternatives[0] for alternatives in candidate.kernels), candidate.latency)
        kernels, total = [], Latency(0.0)
        for alternatives, symbols in zip(candidate.kernels, candidate.symbols, strict=True):
            priced = [(self.price(spec, symbols), spec) for spec in alternatives]
            latency, spec = min(priced, key=lambda p: p[0].seconds)  # the first of equals: the template's own choice
            kernels.append(spec)
            total = total + latency
        return _Choice(candidate, tuple(kernels), total)

    def _assemble(
        self, sites: Sequence[Site], choices: Mapping[str, list[_Choice]], allowance: float, goal: Goal
    ) -> Plan:
        taken = _greedy(choices, allowance)
        decisions = tuple(_decision(site, taken[site.name], choices[site.name]) for site in sites)
        return Plan(goal.model, goal.calibration, goal.hardware, goal.metric, goal.budget, None, decisions)


def _greedy(choices: Mapping[str, list[_Choice]], allowance: float) -> dict[str, _Choice]:
    """The choice at each site: moves away from dense, by saved time per squared error, as long as the errors fit."""
    taken = {name: found[0] for name, found in choices.items()}
    moves = [(name, c) for name, found in choices.items() for c in found[1:] if c.slow_end < found[0].latency.seconds]
    moves.sort(key=lambda m: _worth(choices[m[0]][0], m[1]), reverse=True)
    spent = 0.0
    for name, choice in moves:
        after = spent - taken[name].candidate.error ** 2 + choice.candidate.error**2
        if choice.latency.seconds < taken[name].latency.seconds and (choice.candidate.exact or after <= allowance**2):
            taken[name], spent = choice, after
    return taken


def _spent(plan: Plan) -> float:
    """Estimated error of a plan: the errors of its sites are taken as independent."""
    return math.sqrt(sum(d.error**2 for d in plan.decisions))


def _worth(dense: _Choice, choice: _Choice) -> float:
    saved = dense.latency.seconds - choice.latency.seconds
    return saved / choice.candidate.error**2 if choice.candidate.error else math.inf


def _decision(site: Site, choice: _Choice, choices: Sequence[_Choice]) -> Decision:
    dense = choices[0]
    own = tuple(alternatives[0].schedule for alternatives in choice.candidate.kernels)
    return Decision(
        site=site.name,
        pass_name=choice.candidate.pass_name,
        options=choice.candidate.options,
        kernels=choice.kernels,
        changed=own != tuple(k.schedule for k in choice.kernels),
        latency=choice.latency,
        dense=dense.latency,
        error=choice.candidate.error,
        reason=_reason(choice, choices),
    )


def _reason(choice: _Choice, choices: Sequence[_Choice]) -> str:
    dense, others = choices[0], len(choices) - 1
    if choice.candidate.pass_name != DENSE:
        saved = dense.latency.seconds - choice.latency.seconds
        return f"saves {1e6 * saved:.3g} of {1e6 * dense.latency.seconds:.3g} us"
    if others:
        surely = sum(c.slow_end < dense.latency.seconds for c in choices[1:])
        what = "is surely faster" if not surely else "that is surely faster fits the budget"
        return f"none of {others} other candidates {what}"
    schedules = [len(alternatives) for alternatives in choice.candidate.kernels]
    return "the only candidate" + (f", with {sum(schedules)} schedules" if max(schedules) > 1 else "")


def _verified(plan: Plan, measured: float, tightened: int) -> Plan:
    notes = []
    if tightened:
        notes.append(f"tightened {tightened} times, because the whole model was over the budget")
    if plan.exact and not measured <= plan.budget:
        notes.append(
            f"the plan is exact: its {plan.metric} of {measured:.3g} against eager is the rounding of sums in another order"
        )
    return replace(plan, measured=measured if math.isfinite(measured) else None, notes=tuple(notes))
