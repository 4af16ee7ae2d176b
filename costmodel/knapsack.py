"""One option at each of several places, so that one sum is least while others keep their limits: the multiple-choice knapsack, with what
neighbouring places cost together.

Solved as a mixed integer linear program (HiGHS, by scipy), exactly where that takes a quarter of a second at most; beyond, the best found
is at most ``gap`` from what a relaxation proves (of many layers that are nearly alike, a tenth of a percent takes minutes to prove). What
two places cost together is written as a flow between the classes of their options, of which the relaxation is tight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Seconds of the search, after which an answer that is near enough will do; and how near that is.
_SECONDS, _NEAR = 0.25, 0.01
#: By how much, as a share of a limit, a sum may pass it through rounding. The solver's own tolerance is wider: where an answer of its
#: passes the limit, it is asked again to keep these shares away from it.
_ROUNDING = 1e-9
_TIGHTER = (0.0, 1e-5, 1e-3)
#: A gap of the solver's that is its tolerance.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Edge:
    """What the places ``left`` and ``right`` cost together: ``costs[a][b]``, at least 0, where their options are of the classes ``a`` and
    ``b``. ``left_classes``, ``right_classes``: of each option.
    """

    left: int
    right: int
    left_classes: tuple[int, ...]
    right_classes: tuple[int, ...]
    costs: tuple[tuple[float, ...], ...]

    def cost(self, chosen: Sequence[int]) -> float:
        """Where ``chosen`` is the option of each place."""
        return self.costs[self.left_classes[chosen[self.left]]][self.right_classes[chosen[self.right]]]


@dataclass(frozen=True)
class Quantity:
    """Adds up over the places: ``values[place][option]``, and ``edges``."""

    values: tuple[tuple[float, ...], ...]
    edges: tuple[Edge, ...] = ()

    def total(self, chosen: Sequence[int]) -> float:
        """Where ``chosen`` is the option of each place."""
        own = sum(values[i] for values, i in zip(self.values, chosen, strict=True))
        return own + sum(edge.cost(chosen) for edge in self.edges)

    @property
    def floor(self) -> float:
        """No choice has less: the least of each place, without edges."""
        return sum(min(values) for values in self.values)


@dataclass(frozen=True)
class Chosen:
    """``options``: of each place. ``gap``: by which share of the sum another choice may be better at most; 0: by none."""

    options: tuple[int, ...]
    gap: float


def least(objective: Quantity, limits: Sequence[tuple[Quantity, float]] = ()) -> Chosen | None:
    """The choice of least ``objective`` whose other quantities are at most their limits (infinite ones are none); None where none is."""
    bounded = [(quantity, limit) for quantity, limit in limits if math.isfinite(limit)]
    if any(_slack(quantity, limit) < 0 for quantity, limit in bounded):
        return None
    if not objective.values:
        return Chosen((), 0.0)
    for tighter in _TIGHTER:
        found = _Program(objective, bounded, tighter).solve()
        if found is None or all(q.total(found.options) <= limit + _rounding(limit) for q, limit in bounded):
            return found
    return None


def _slack(quantity: Quantity, limit: float) -> float:
    """What is left for choosing more than the least at each place; a difference that is rounding is 0."""
    slack = limit - quantity.floor
    return 0.0 if -_rounding(limit) <= slack < 0 else slack


def _rounding(limit: float) -> float:
    return _ROUNDING * abs(limit)


class _Program:
    """Variables: whether each option is taken, then the flows of each edge. Every sum is scaled by what it can vary by, for the solver's
    tolerances are absolute.
    """

    def __init__(self, objective: Quantity, limits: Sequence[tuple[Quantity, float]], tighter: float) -> None:
        self.objective, self.limits, self.tighter = objective, limits, tighter
        self.starts = [0]
        for values in objective.values:
            self.starts.append(self.starts[-1] + len(values))
        self.flows: dict[Edge, int] = {}
        self.count = self.starts[-1]
        for quantity in (objective, *(q for q, _ in limits)):
            for edge in quantity.edges:
                if edge not in self.flows:
                    self.flows[edge] = self.count
                    self.count += len(edge.costs) * len(edge.costs[0])

    def solve(self) -> Chosen | None:
        """None: no choice keeps the limits."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp

        scale = sum(max(v) - min(v) for v in self.objective.values) or 1.0
        costs = self._coefficients(self.objective) / scale
        upper = np.ones(self.count)
        rows = [self._equalities()]
        for quantity, limit in self.limits:
            slack = _slack(quantity, limit)
            own = self._coefficients(quantity)
            upper[own > slack + _rounding(limit)] = 0.0  # such an option alone is too much
            if slack > 0:
                rows.append(LinearConstraint((own / slack)[None], -np.inf, 1.0 - self.tighter))
        integrality = np.zeros(self.count)
        integrality[: self.starts[-1]] = 1
        for settings in ({"time_limit": _SECONDS, "mip_rel_gap": 0.0}, {"mip_rel_gap": _NEAR}):
            found = milp(costs, integrality=integrality, bounds=Bounds(0, upper), constraints=rows, options=settings)
            if found.x is not None or found.status != 1:  # 1: out of time
                break
        if found.x is None:
            return None
        return Chosen(self._taken(found.x), self._gap(found, scale))

    def _gap(self, found: Any, scale: float) -> float:
        floor = self.objective.floor
        best, bound = floor + scale * found.fun, floor + scale * (found.mip_dual_bound or 0.0)
        gap = (best - bound) / best if best > 0 else 0.0
        return gap if gap > _TOLERANCE else 0.0

    def _coefficients(self, quantity: Quantity) -> Any:
        """Of each variable, values above the least of their place."""
        import numpy as np

        found = np.zeros(self.count)
        for start, values in zip(self.starts, quantity.values, strict=False):
            found[start : start + len(values)] = np.asarray(values) - min(values)
        for edge in quantity.edges:
            costs = np.asarray(edge.costs).ravel()
            found[self.flows[edge] : self.flows[edge] + len(costs)] = costs
        return found

    def _equalities(self) -> Any:
        """One option at each place; of each edge, the flow out of and into a class is whether an option of it is taken."""
        import numpy as np
        from scipy.optimize import LinearConstraint
        from scipy.sparse import coo_array

        entries: list[tuple[int, int, float]] = []
        sides: list[float] = []
        for place, start in enumerate(self.starts[:-1]):
            entries += [(place, i, 1.0) for i in range(start, self.starts[place + 1])]
            sides.append(1.0)
        for edge, first in self.flows.items():
            sizes = len(edge.costs), len(edge.costs[0])
            for side, (place, classes) in enumerate(((edge.left, edge.left_classes), (edge.right, edge.right_classes))):
                row = len(sides)
                entries += [(row + c, self.starts[place] + i, -1.0) for i, c in enumerate(classes)]
                entries += [(row + pair[side], first + n, 1.0) for n, pair in enumerate(np.ndindex(sizes))]
                sides += [0.0] * sizes[side]
        at, columns, values = zip(*entries, strict=True)
        return LinearConstraint(
            coo_array((values, (at, columns)), shape=(len(sides), self.count)).tocsc(), sides, sides
        )

    def _taken(self, x: Any) -> tuple[int, ...]:
        return tuple(int(x[start:stop].argmax()) for start, stop in zip(self.starts[:-1], self.starts[1:], strict=True))
