"""What a plan's error does not tell, for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from effc.compiler.ir.plan import Plan


def unregistered(names: Sequence[str]) -> list[str]:
    """A note where the model reads weights, found by these ``names``, that are not its own."""
    if not names:
        return []
    return [
        f"{', '.join(names)}: of modules that the model has not registered, as those in a plain list; they stay exact. A nn.ModuleList "
        f"registers them"
    ]


def doubts(plan: Plan, held_out: int) -> list[str]:
    """Notes for ``plan``, whose error is of ``held_out`` batches of its calibration, or of all where that is 0."""
    budget = plan.budgets.accuracy
    if plan.exact:
        if not budget or plan.margin is None or not plan.margin > budget:
            return []
        data = "batches held out" if held_out else "calibration's batches"
        return [
            f"the {data} are too few to tell {plan.metric} to {budget:g}: with no error at all their margin is "
            f"{plan.margin:.1g}. Calibrate with more"
        ]
    if not held_out:
        return [
            "its error is of batches that its weights were compressed by, and may be larger on others: give effc.calibrate two batches or "
            "more (one can be split), and leave held_out as it is"
        ]
    if plan.margin is None or math.isnan(plan.margin):
        return [
            "its error is of one batch held out, and nothing tells by how much it differs on others: calibrate with three batches or more"
        ]
    return []
