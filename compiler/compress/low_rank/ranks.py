"""Choosing ranks: the least error of outputs for a number of parameters.

A Lagrangian: for a price of a parameter each weight takes the factors of the least error plus price; the price is found by bisection
(Everett, "Generalized Lagrange Multiplier Method for Solving Problems of Optimum Allocation of Resources", 1963).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from effc.compiler.ir.errors import OptionError

#: Ranks are multiples of this: a vector of floats, so that no kernel has a remainder along it.
MULTIPLE = 16
_STEPS = 60  # of the bisection: more than a double tells apart


Kind = Literal["product", "tucker", "separable"]


@dataclass(frozen=True)
class Ranks:
    """Of a weight's factors. ``"product"``: ``(rank,)`` of two matrices; ``"tucker"``: the channels that the window reads and gives, where
    all of a side's channels need no factor; ``"separable"``: ``(rank,)``, the channels between two one-way filters.
    """

    kind: Kind
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Point:
    """What ``ranks`` cost: the squared error, and the number of parameters."""

    error: float
    size: int
    ranks: Ranks


@dataclass(frozen=True, eq=False)
class Curve:
    """Of weights that are factorized together, of ``dense`` parameters: the ``points`` of fewer, none of which another is as good as for
    no more parameters.
    """

    points: Sequence[Point]
    dense: int

    @staticmethod
    def of(points: Iterable[Point], dense: int) -> Curve:
        found: list[Point] = []
        for point in sorted(points, key=lambda p: (p.size, p.error)):
            if point.size < dense and (not found or point.error < found[-1].error):
                found.append(point)
        return Curve(found, dense)

    @staticmethod
    def of_products(errors: Tensor, of_a_rank: int, dense: int) -> Curve:
        """``errors`` ``[directions + 1]`` by rank, of products of two matrices, ``of_a_rank`` parameters each."""
        ranks = range(MULTIPLE, min(len(errors), -(-dense // of_a_rank)), MULTIPLE)
        return Curve.of((Point(float(errors[r]), r * of_a_rank, Ranks("product", (r,))) for r in ranks), dense)

    def best(self, price: float) -> tuple[float, int, Ranks | None]:
        """Error plus price of the parameters, the parameters, and the ranks; None: the weights stay."""
        found: tuple[float, int, Ranks | None] = (price * self.dense, self.dense, None)
        for point in self.points:
            found = min(found, (point.error + price * point.size, point.size, point.ranks), key=lambda f: f[0])
        return found


#: Ways to factorize weights that meet one activation, each a list of curves: together, or one by one.
Ways = Sequence[Sequence[Curve]]


def allocate(groups: Sequence[Ways], kept: float) -> list[tuple[int, list[Ranks | None]]]:
    """For each group the way and the ranks of each of its curves, such that all together keep at most the share ``kept`` of the parameters.

    ``groups``: one or more. OptionError: that is less than the smallest ranks need.
    """
    dense = sum(sum(curve.dense for curve in ways[0]) for ways in groups)
    low, high = -60.0, 60.0  # powers of two of the price of all parameters
    found, size = _at(groups, 2.0**high / dense)
    if size > kept * dense:
        raise OptionError(
            f"option 'passes': low_rank: ranks of {MULTIPLE} keep {size / dense:.3f} of the parameters, more than parameters={kept:g}: "
            "ask for more, or name weights in 'skip'"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tried, size = _at(groups, 2.0**middle / dense)
        if size <= kept * dense:
            found, high = tried, middle
        else:
            low = middle
    return found


def _at(groups: Sequence[Ways], price: float) -> tuple[list[tuple[int, list[Ranks | None]]], int]:
    """The best of each group at a price, and the number of parameters."""
    chosen, total = [], 0
    for ways in groups:
        least = math.inf
        for number, curves in enumerate(ways):
            best = [curve.best(price) for curve in curves]
            cost = sum(b[0] for b in best)
            if cost < least:
                least, size, choice = cost, sum(b[1] for b in best), (number, [b[2] for b in best])
        chosen.append(choice)
        total += size
    return chosen, total
