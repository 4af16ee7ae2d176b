"""``effc.plan``: choose what runs at each site of a model, within an accuracy budget, and verify it on the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

import effc.passes
from effc.apart import compiled_apart
from effc.calibration import cloned
from effc.compiler.capture.recording import record
from effc.compiler.codegen.cpu import schedules
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.calibration import Calibration
from effc.compiler.ir.candidate import Capability, Latency, candidates_at
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import Options, budget
from effc.compiler.ir.options import metric as checked_metric
from effc.compiler.ir.plan import Plan
from effc.compiler.ir.site import Site, sites_of
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec
from effc.costmodel import roofline
from effc.costmodel.planner import Goal, Planner, Price
from effc.identity import model_digest, original
from effc.metrics import UserMetric, metric_name, metric_of
from effc.runtime.cache import Cache
from effc.speed import host_hardware


def plan(
    model: nn.Module,
    calibration: Calibration,
    *,
    accuracy_budget: float = 0.0,
    metric: str | UserMetric = "relative_l2",
    options: Options | Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of least predicted latency that keeps ``metric`` within ``accuracy_budget`` on the calibration's batches.

    ``metric``: ``"relative_l2"``, ``"top1_disagreement"``, ``"kl"``, ``"perplexity"`` (relative rise), or a callable
    ``(reference_outputs, outputs, batch) -> float``. ``options``: as for ``torch.compile``, without a plan or a budget; a
    pass that they switch off proposes nothing. Sites are taken from the model compiled for the first batch.
    OptionError: a wrong budget, metric or option, or a calibration of another model.
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
    trial = _Trial(module, calibration, base, chosen)
    sites = trial.sites()
    off = {name for name, choice in base.passes if choice is False}
    effc.passes.registry()  # imports the passes, which register what they propose
    capability = host_capability()
    candidates = {s.name: list(candidates_at(s, calibration, capability, lambda name: name not in off)) for s in sites}
    goal = Goal(
        calibration.model, calibration.digest, Target.host().key, metric_name(chosen), limit, lambda p: trial.error(p)
    )
    return Planner(roofline_price(base)).plan(sites, candidates, goal)


def host_capability() -> Capability:
    """What code generation makes for this CPU."""
    target = Target.host()
    return Capability(
        supports=lambda spec: schedules.supports(spec, target),
        alternatives=lambda spec: schedules.alternatives(spec, target),
        preferred_multiple=lambda dtype: target.lanes(ITEM_SIZE[dtype]),
    )


def roofline_price(options: Options) -> Price:
    """Latency by this machine's roofline."""
    hardware = host_hardware(Cache(options.cache_dir))

    @cache
    def price(key: KernelSpec, symbols: tuple[int, ...]) -> Latency:
        return roofline.latency(key, symbols, hardware)

    return lambda spec, symbols: price(spec, tuple(symbols))


class _Trial:
    """The model, compiled by one plan after the other and run on the calibration's batches."""

    def __init__(self, model: nn.Module, calibration: Calibration, options: Options, metric: str | UserMetric) -> None:
        self.model, self.calibration, self.options = model, calibration, options
        self.metric = metric_of(metric)
        self.plain = compiled_apart(model, options)

    def sites(self) -> list[Site]:
        """Of the graphs that the first batch leads to."""
        with record() as recording:
            self._run(self.plain, 0)
        return sites_of(recording.programs)

    def error(self, plan: Plan) -> float:
        """The metric of the whole model under ``plan``."""
        as_it_is = plan.exact and not plan.schedules()
        compiled = self.plain if as_it_is else compiled_apart(self.model, self.options.with_plan(plan))
        outputs = [self._run(compiled, number) for number in range(len(self.calibration.batches))]
        batches = [args if not kwargs else (*args, *kwargs.values()) for args, kwargs in self.calibration.batches]
        return self.metric(self.calibration.outputs, outputs, batches)

    def _run(self, compiled: Any, number: int) -> Any:
        args, kwargs = cloned(self.calibration.batches[number])
        with torch.no_grad():
            return compiled(*args, **kwargs)
