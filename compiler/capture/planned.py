"""What a plan, or a budget without one, means for the graphs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import Options
from effc.compiler.ir.program import Program


def check_kind(options: Options, kind: str) -> None:
    """OptionError where gradients are taken through a model that may be changed."""
    plan = options.plan if options.plan is not None and not options.plan.exact else None
    passes = ", ".join(type(c).name for c in options.compressions())
    what = f"the rewrite {passes}" if passes else ""
    if plan is not None:
        what = f"a plan for {plan.budgets.describe(plan.metric)}"
    elif options.accuracy_budget:
        what = f"an accuracy budget of {options.accuracy_budget:g}"
    if kind != "inference" and what:
        raise OptionError(
            f"{what} and gradients exclude each other, because training uses the weights in place and is always exact: call the "
            "model under torch.no_grad(), or leave it out"
        )


def code_options(options: Options) -> dict[str, Any]:
    """What the pipeline is told: a plan for another CPU gives no schedules."""
    code = options.of_code()
    return code if _for_this_cpu(options) else {**code, "schedules": {}}


def plan_notes(options: Options, programs: Sequence[Program]) -> list[str]:
    """For the report: in how far a plan was followed, and what a budget was spent on."""
    plan = options.plan
    if plan is None:
        if not options.accuracy_budget:
            return []
        return [
            f"accuracy_budget={options.accuracy_budget:g}: nothing of it was spent, for only a plan (effc.plan) or an option of "
            "'passes' changes what a model computes"
        ]
    if not _for_this_cpu(options):
        return [
            f"the plan was made for another CPU ({plan.hardware}), and this is {Target.host().key}: schedules are the defaults; "
            "make a plan here by effc.plan"
        ]
    planned = {kernel.key() for decision in plan.decisions for kernel in decision.kernels}
    if programs and planned and not planned & {spec.key() for program in programs for spec in program.kernels}:
        return [
            "no kernel of this graph is in the plan: it was made for another model or for other input shapes; schedules are "
            "the defaults"
        ]
    return []


def _for_this_cpu(options: Options) -> bool:
    return options.plan is None or options.plan.hardware == Target.host().key
