"""Choosing ranks: the least error of outputs for a number of parameters.

A Lagrangian: for a price of a parameter each weight takes the rank of the least error plus price; the price is found by bisection
(Everett, "Generalized Lagrange Multiplier Method for Solving Problems of Optimum Allocation of Resources", 1963).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from effc.compiler.ir.errors import OptionError

#: Ranks are multiples of this: a vector of floats, so that no kernel has a remainder along it.
MULTIPLE = 16
_STEPS = 60  # of the bisection: more than a double tells apart


@dataclass(frozen=True, eq=False)
class Curve:
    """Errors of weights that share a factor, ``[directions + 1]``, squared, by rank. Numbers of parameters: ``of_a_rank``, of one more;
    ``dense``, of the weights as they are.
    """

    errors: Tensor
    of_a_rank: int
    dense: int

    def best(self, price: float) -> tuple[float, int, int | None]:
        """Error plus price of the parameters, the parameters, and the rank; None: the weights stay."""
        found: tuple[float, int, int | None] = (price * self.dense, self.dense, None)
        for error, size, rank in self._smaller:
            found = min(found, (error + price * size, size, rank), key=lambda f: f[0])
        return found

    @cached_property
    def _smaller(self) -> list[tuple[float, int, int]]:
        """Error, parameters and rank of factors that hold fewer numbers than the weights."""
        ranks = range(MULTIPLE, min(len(self.errors), -(-self.dense // self.of_a_rank)), MULTIPLE)
        return [(float(self.errors[rank]), rank * self.of_a_rank, rank) for rank in ranks]


#: Ways to factorize weights that meet one activation, each a list of curves: together, or one by one.
Ways = Sequence[Sequence[Curve]]


def allocate(groups: Sequence[Ways], kept: float) -> list[tuple[int, list[int | None]]]:
    """For each group the way and the rank of each of its curves, such that all together keep at most the share ``kept`` of the parameters.

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


def _at(groups: Sequence[Ways], price: float) -> tuple[list[tuple[int, list[int | None]]], int]:
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
