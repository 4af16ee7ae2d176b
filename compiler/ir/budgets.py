"""``Budgets``: what a plan may cost, read from the arguments of ``effc.plan``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from effc.compiler.ir.errors import OptionError

#: Seconds in a unit of ``latency_budget_ms``, bytes in one of ``size_budget_mb``.
_MS, _MB = 1e-3, 10**6


@dataclass(frozen=True)
class Budgets:
    """Limits of a plan, None where there is none. ``accuracy``: of the metric. ``latency``: seconds of a call of the whole model.
    ``size``: bytes of all parameters and buffers, those that the plan compresses as it stores them.
    """

    accuracy: float | None = 0.0
    latency: float | None = None
    size: int | None = None

    @staticmethod
    def of(accuracy_budget: Any, latency_budget_ms: Any, size_budget_mb: Any) -> Budgets:
        """As a user gives them; without any, no error at all. OptionError: a value that is no limit."""
        accuracy = None if accuracy_budget is None else budget(accuracy_budget)
        latency = _positive("latency_budget_ms", latency_budget_ms, 12.5)
        size = _positive("size_budget_mb", size_budget_mb, 25)
        if accuracy is None and latency is None and size is None:
            return Budgets()
        return Budgets(
            accuracy, None if latency is None else latency * _MS, None if size is None else math.floor(size * _MB)
        )

    @property
    def least_error(self) -> bool:
        """Whether the error is to be least, within latency and size; else latency is, within the error and size."""
        return self.latency is not None or self.accuracy is None

    @property
    def spends(self) -> bool:
        """Whether a plan may change what the model computes."""
        return self.accuracy != 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Budgets:
        return Budgets(data["accuracy"], data["latency"], data["size"])

    def describe(self, metric: str) -> str:
        """``relative_l2 <= 0.01, latency <= 5 ms``."""
        found = [f"{metric} <= {self.accuracy:g}"] if self.accuracy is not None else [f"least {metric}"]
        if self.latency is not None:
            found.append(f"latency <= {self.latency / _MS:g} ms")
        if self.size is not None:
            found.append(f"size <= {self.size / _MB:g} MB")
        return ", ".join(found)


def budget(value: Any) -> float:
    """A number of a metric's unit, at least 0; OptionError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise OptionError(f"option 'accuracy_budget' is {value!r}: expected a number of at least 0, such as 0.01")
    return float(value)


def _positive(name: str, value: Any, such_as: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise OptionError(f"option '{name}' is {value!r}: expected a number above 0, such as {such_as:g}")
    return float(value)
