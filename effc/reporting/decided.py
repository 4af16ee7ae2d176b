"""A plan's decisions in a report: what each site has, what else could run there, predicted and measured, and why."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effc.compiler.ir.candidate import DENSE
from effc.compiler.ir.considered import CHOSEN, Considered
from effc.compiler.ir.plan import Decision, Plan
from effc.compiler.ir.site import Site


@dataclass(frozen=True)
class DecisionFacts:
    """A plan's decision at a site of this model. ``latency``: predicted, in seconds, or taken in the planner's runs; ``measured``: of the
    kernels that are here, None where they were not timed. ``followed``: whether they are what was chosen.
    """

    site: str
    chosen: str
    latency: float
    uncertainty: float
    dense: float
    measured: float | None
    error: float
    reason: str
    followed: bool
    considered: tuple[Considered, ...]

    @staticmethod
    def of(decision: Decision, sites: Sequence[Site], seconds: Sequence[float | None]) -> DecisionFacts:
        """``sites``: what the plan makes at the decision's site, with ``seconds`` of each."""
        timed = [s for s in seconds if s is not None]
        if decision.pass_name == DENSE:
            followed = all(site.spec in decision.kernels for site in sites)
        else:
            followed = any(":" in param for site in sites for param in site.params)  # a form of the weight
        return DecisionFacts(
            site=decision.site,
            chosen=decision.chosen,
            latency=decision.latency.seconds,
            uncertainty=decision.latency.uncertainty,
            dense=decision.dense.seconds,
            measured=sum(timed) if len(timed) == len(sites) else None,
            error=decision.error,
            reason=decision.reason,
            followed=followed,
            considered=decision.considered,
        )

    def lines(self) -> list[str]:
        """For people: the site, what was chosen, and every other candidate."""
        ignored = "" if self.followed else "; not followed"
        times = f"{_us(self.latency)} ± {100 * self.uncertainty:.0f} %"
        if self.measured is not None:
            times += f", measured {_us(self.measured)}"
        head = f"{self.site}: {self.chosen}, {times}, {_error(self.error)}: {self.reason}{ignored}"
        others = (c for c in self.considered if c.verdict != CHOSEN)
        return [head, *(f"  not {_described(c)}: {c.verdict}" for c in others)]

    def data(self) -> dict[str, Any]:
        """As JSON values; seconds and bytes."""
        return {
            "site": self.site,
            "chosen": self.chosen,
            "latency": self.latency,
            "uncertainty": self.uncertainty,
            "dense": self.dense,
            "measured": self.measured,
            "error": self.error,
            "reason": self.reason,
            "followed": self.followed,
            "candidates": [{"label": c.label, **c.to_json()} for c in self.considered],
        }

    def rows(self) -> str:
        """Rows of an HTML table, by `HEAD`."""
        measured = "" if self.measured is None else _us(self.measured)
        first = [self.site, self.chosen, _us(self.latency), measured, _error(self.error), self.reason]
        first += ["yes" if self.followed else "no"]
        others = [
            ["", c.label, _us(c.latency.seconds), "", _error(c.error), c.verdict, ""]
            for c in self.considered
            if c.verdict != CHOSEN
        ]
        return _row(first, "b") + "".join(_row(cells, "span") for cells in others)


#: Of the table that ``rows`` are of.
HEAD = ("site", "candidate", "predicted", "measured", "error", "why", "followed")


def decisions_of(
    plan: Plan | None, sites: Sequence[Site], seconds: Sequence[float | None]
) -> tuple[DecisionFacts, ...]:
    """Of the plan by which ``sites`` were compiled, those that concern them, with ``seconds`` of each site; the slowest as it was first."""
    if plan is None:
        return ()
    timed = {site.name: s for site, s in zip(sites, seconds, strict=True)}
    places = kernels_at(plan.decisions, sites)
    found = [
        DecisionFacts.of(d, places[d.site], [timed[site.name] for site in places[d.site]])
        for d in plan.decisions
        if places[d.site]
    ]
    return tuple(sorted(found, key=lambda d: -d.dense))


def kernels_at(decisions: Sequence[Decision], sites: Sequence[Site]) -> dict[str, list[Site]]:
    """Of each decision's site what a plan makes there: the kernel of that name, else those that read a form of its first weight."""
    named = {site.name: site for site in sites}
    by_weight: dict[str, list[Site]] = {}
    for site in sites:
        for name in dict.fromkeys(param.partition(":")[0] for param in site.params):
            by_weight.setdefault(name, []).append(site)
    return {
        d.site: [named[d.site]] if d.site in named else by_weight.get(d.site.partition("/")[0], []) for d in decisions
    }


def plan_data(plan: Plan) -> Mapping[str, Any]:
    """What a plan promises and what was measured of it, as JSON values; seconds and bytes."""
    return {
        "metric": plan.metric,
        "budgets": plan.budgets.to_json(),
        "measured": plan.measured,
        "margin": plan.margin,
        "seconds": None if plan.seconds is None else {"planned": plan.seconds[0], "exact": plan.seconds[1]},
        "expected": plan.expected,
        "size": plan.size,
        "notes": list(plan.notes),
    }


def _described(candidate: Considered) -> str:
    source = "" if candidate.measured else f" ± {100 * candidate.latency.uncertainty:.0f} % predicted"
    return f"{candidate.label} ({_us(candidate.latency.seconds)}{source}, {_error(candidate.error)})"


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<td><{tag}>{html.escape(cell)}</{tag}></td>" for cell in cells) + "</tr>"


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:.3g} us"


def _error(error: float) -> str:
    return "exact" if error == 0 else f"error {error:.2g}"
