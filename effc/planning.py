"""``effc.plan``: choose what runs at each site of a model, within an accuracy budget, and verify it on the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn

import effc.passes
from effc.compiler.codegen.cpu import schedules
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.compress.form import Form
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir import plan as ir
from effc.compiler.ir.calibration import Calibration
from effc.compiler.ir.candidate import DENSE, Alternatives, Latency, dense
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import Options, budget
from effc.compiler.ir.options import metric as checked_metric
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel import roofline
from effc.costmodel.planner import Goal, Planner, Price
from effc.identity import model_digest, original
from effc.metrics import UserMetric, metric_name
from effc.offers import Offers, offers
from effc.plans import Plan, plan_of
from effc.runtime.cache import Cache
from effc.speed import host_hardware
from effc.trial import Compiled, Trial
from effc.variants import offered


def plan(
    model: nn.Module,
    calibration: Calibration,
    *,
    accuracy_budget: float = 0.0,
    metric: str | UserMetric = "relative_l2",
    options: Options | Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of least latency that keeps ``metric`` within ``accuracy_budget`` on the calibration's batches.

    ``metric``: ``"relative_l2"``, ``"top1_disagreement"``, ``"kl"``, ``"perplexity"`` (relative rise), or a callable
    ``(reference_outputs, outputs, batch) -> float``. ``options``: as for ``torch.compile``, without a plan or a budget; a
    pass that they switch off proposes nothing, one whose options they fix only that. Sites are taken from the model compiled for the
    first batch, on which kernels are timed too. OptionError: a wrong budget, metric or option, or a calibration of another model.
    """
    limit, chosen = budget(accuracy_budget), checked_metric(metric)
    base = Options.of(options)
    if base.plan is not None or base.accuracy_budget:
        raise OptionError("effc.plan makes the plan: give it accuracy_budget= and metric=, not in options")
    if not isinstance(calibration, Calibration):
        raise OptionError(f"the calibration is {calibration!r}: expected what effc.calibrate returns")
    module = original(model)
    if not isinstance(module, nn.Module) or model_digest(module) != calibration.model:
        raise OptionError(
            "the calibration was made from another model, or its weights have changed: calibrate this one"
        )
    effc.passes.registry()  # imports the passes, whose names options may hold
    return _Planning(Trial(module, calibration), base, chosen).plan(limit)


@dataclass(frozen=True)
class _Planning:
    trial: Trial
    options: Options
    metric: str | UserMetric

    def plan(self, limit: float) -> Plan:
        """The plan for a budget of ``limit``."""
        plain = self.trial.compile(self.options.exact())
        variants = offered(self.options, self.trial) if limit else []
        if variants:
            made = offers(self.trial, plain, self.options, variants)
        else:
            made = Offers({s.name: [dense(s, host_alternatives())] for s in plain.sites}, {})

        def complete(plan: ir.Plan) -> ir.Plan:
            weights: dict[str, StoredWeight[Form]] = {}
            for site, decision in zip(plain.sites, plan.decisions, strict=True):
                for name in site.params:
                    weights |= made.weights.get((name, decision.options), {})
            return replace(plan, weights=weights)

        def verify(plan: ir.Plan) -> float:
            as_it_is = plan.exact and not plan.schedules()
            compiled = plain if as_it_is else self._compile(complete(plan))
            return self.trial.error(compiled.call, self.metric)

        calibration = self.trial.calibration
        goal = Goal(calibration.model, calibration.digest, Target.host().key, metric_name(self.metric), limit, verify)
        found = complete(Planner(roofline_price(self.options)).plan(plain.sites, made.candidates, goal))
        return plan_of(self._if_faster(found, plain) if found.weights else found)

    def _compile(self, plan: ir.Plan) -> Compiled:
        return self.trial.compile(self.options.with_plan(plan))

    def _if_faster(self, plan: ir.Plan, plain: Compiled) -> ir.Plan:
        """``plan``, with the time of the whole model in its notes; nothing compressed where that is no gain."""
        ours, exact = self.trial.seconds(self._compile(plan), plain)
        times = f"a call takes {1e3 * ours:.3g} ms compressed, {1e3 * exact:.3g} ms as it is"
        if ours < exact:
            return replace(plan, notes=(*plan.notes, times))
        kept = tuple(d if d.pass_name == DENSE else d.dropped("the whole model is not faster") for d in plan.decisions)
        measured = self.trial.error(plain.call, self.metric)
        return replace(
            plan, decisions=kept, weights={}, measured=measured, notes=(*plan.notes, f"{times}: it stays exact")
        )


def host_alternatives() -> Alternatives:
    """The schedules that code generation has for this CPU."""
    target = Target.host()
    return lambda spec: schedules.alternatives(spec, target)


def roofline_price(options: Options) -> Price:
    """Latency by this machine's roofline."""
    hardware = host_hardware(Cache(options.cache_dir))

    @cache
    def price(key: KernelSpec, symbols: tuple[int, ...]) -> Latency:
        return roofline.latency(key, symbols, hardware)

    return lambda spec, symbols: price(spec, tuple(symbols))
