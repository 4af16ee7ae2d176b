"""``effc.plan``: choose what runs at each site of a model, within budgets, and verify it on the whole model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

import effc.passes
from effc.calibrating.identity import model_digest, original
from effc.collecting.timer import KernelTimer
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.compress.form import Form
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir import plan as ir
from effc.compiler.ir.budgets import Budgets
from effc.compiler.ir.calibration import Calibration
from effc.compiler.ir.candidate import DENSE, Candidate, Latency
from effc.compiler.ir.errors import OptionError, UnsupportedError
from effc.compiler.ir.options import Options
from effc.compiler.ir.options import metric as checked_metric
from effc.compiler.ir.site import Site
from effc.costmodel.neighbours import links
from effc.costmodel.planner import Goal, Planner, Verified
from effc.metrics import UserMetric, metric_name
from effc.on_cpu import require_cpu
from effc.planning.autotune import Tuner
from effc.planning.doubts import doubts, unregistered
from effc.planning.groundwork import Groundwork
from effc.planning.offers import Offers
from effc.planning.plans import Plan, plan_of
from effc.planning.stored_size import model_size, planned_size, weights_size
from effc.planning.trial import Compiled, Trial
from effc.planning.tuning import note, with_schedules
from effc.planning.variants import Pairs
from effc.runtime.cache import Cache
from effc.runtime.threads import threads
from effc.turns import Turns, in_turn

#: How much slower than the exact model a plan may surely not be, as a ratio of times.
_SLOWER = 1.05
#: Rounds of calls by which a time is compared with a budget.
_ROUNDS = 15
#: Plans whose compiled model is kept.
_KEPT = 3


def plan(
    model: nn.Module,
    calibration: Calibration,
    *,
    accuracy_budget: float | None = None,
    latency_budget_ms: float | None = None,
    size_budget_mb: float | None = None,
    metric: str | UserMetric = "relative_l2",
    autotune: int = 0,
    options: Options | Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of least latency that keeps ``metric`` within ``accuracy_budget``; without any budget, of exact code.

    The metric is measured on the batches that the calibration holds out, and its margin (`Plan`) added, so that it holds with a confidence
    of 95 %. Of two batches, one of them held out, there is no margin; of one, or with ``held_out=0``, it is of what weights were compressed
    by. Sites are taken from the model compiled for the first batch, on which kernels are timed too.

    ``latency_budget_ms``: instead, the plan of least error of those whose call takes at most so many milliseconds, for the first batch on
    this machine.

    ``size_budget_mb``: only plans whose parameters and buffers take at most so many millions of bytes; alone, the one of least error. All
    budgets that are given hold.

    ``metric``: ``"relative_l2"``, ``"top1_disagreement"``, ``"kl"``, ``"perplexity"`` (relative rise), or a callable
    ``(reference_outputs, outputs, batch) -> float``.

    ``autotune``: how many schedules of a kernel are measured, of those that are predicted fastest, where predictions do not tell which is;
    what is measured is kept in the cache. 0: none.

    ``options``: as for ``torch.compile``, without a plan or a budget. A pass that they switch off proposes nothing, one whose options they
    fix only that.

    OptionError: a wrong budget, metric or option, or a calibration of another model. BudgetError: no plan keeps the budgets; the text says
    what is the nearest.
    """
    ground = groundwork(model, calibration, options)
    return plan_on(
        ground,
        accuracy_budget=accuracy_budget,
        latency_budget_ms=latency_budget_ms,
        size_budget_mb=size_budget_mb,
        metric=metric,
        autotune=autotune,
    )


def groundwork(
    model: nn.Module, calibration: Calibration, options: Options | Mapping[str, Any] | None = None
) -> Groundwork:
    """For several plans of a model; arguments as of `plan`."""
    base = Options.of(options)
    if base.plan is not None or base.accuracy_budget:
        raise OptionError("effc.plan makes the plan: give it accuracy_budget= and metric=, not in options")
    if not isinstance(calibration, Calibration):
        raise OptionError(f"the calibration is {calibration!r}: expected what effc.calibrate returns")
    module = original(model)
    if isinstance(module, nn.Module):
        require_cpu("effc.plan", module)
    if not isinstance(module, nn.Module) or model_digest(module) != calibration.model:
        raise OptionError(
            "the calibration was made from another model, or its weights have changed: calibrate this one"
        )
    effc.passes.registry()  # imports the passes, whose names options may hold
    return Groundwork(Trial(module, calibration), base)


def plan_on(
    ground: Groundwork,
    *,
    accuracy_budget: float | None = None,
    latency_budget_ms: float | None = None,
    size_budget_mb: float | None = None,
    metric: str | UserMetric = "relative_l2",
    autotune: int = 0,
) -> Plan:
    """`plan`, on what others may have been made on."""
    budgets, chosen = Budgets.of(accuracy_budget, latency_budget_ms, size_budget_mb), checked_metric(metric)
    if not isinstance(autotune, int) or isinstance(autotune, bool) or autotune < 0 or autotune == 1:
        raise OptionError(
            f"option 'autotune' is {autotune!r}: expected how many schedules of a kernel are measured, 2 or more; or 0"
        )
    return _Planning(ground, chosen, budgets, autotune).plan()


@dataclass(frozen=True)
class _Planning:
    ground: Groundwork
    metric: str | UserMetric
    budgets: Budgets
    autotune: int
    _compiled: dict[Any, Compiled] = field(default_factory=dict)

    def plan(self) -> Plan:
        made, calibration = self._offers, self.trial.calibration
        sites, programs = self._plain.sites, self._plain.recording.programs
        goal = Goal(
            model=calibration.model,
            calibration=calibration.digest,
            hardware=Target.host().key,
            metric=metric_name(self.metric),
            budgets=self.budgets,
            verify=self._verify,
            seconds=math.nan
            if self.budgets.latency is None
            else in_turn(lambda: self.trial.seconds(self._plain), _well_known).median(0),
            size=model_size(self.trial.model),
        )
        candidates = {
            name: [self._sized(site, c) for c in made.candidates[name]] for name, site in self.ground.named.items()
        }
        price = self.ground.pricing.of(candidate for listed in candidates.values() for candidate in listed)
        planner = Planner(price, self.ground.hardware)
        found = self._complete(planner.plan(sites, candidates, goal, links(programs)))
        found = replace(found, notes=(*found.notes, self.ground.pricing.told))
        if self.autotune:
            found = self._tuned(found)
        if found.weights or found.schedules():
            found = self._timed(found)
        told = *unregistered(self.trial.unregistered()), *doubts(found, calibration.held_out)
        return plan_of(replace(found, notes=(*found.notes, *told)))

    # -- what there is ------------------------------------------------------------------------------------------------
    @property
    def trial(self) -> Trial:
        return self.ground.trial

    @property
    def options(self) -> Options:
        return self.ground.options

    @property
    def _plain(self) -> Compiled:
        return self.ground.plain

    @cached_property
    def _offers(self) -> Offers:
        return self.ground.offers(self.budgets, metric_name(self.metric))

    def _sized(self, site: Site, candidate: Candidate) -> Candidate:
        """With the bytes that it saves."""
        stored = self._stored(site, candidate.options)
        whole = sum(self.ground.sizes.get(name, 0) for name in stored)
        return replace(candidate, saved=whole - weights_size(stored))

    def _stored(self, site: Site, options: Pairs) -> dict[str, StoredWeight[Form]]:
        """The compressed weights of a site's candidate; those of a weight's parts are named ``name:role``."""
        found: dict[str, StoredWeight[Form]] = {}
        for name in site.params:
            found |= self._offers.weights.get((name, options), {})
        return found

    # -- plans --------------------------------------------------------------------------------------------------------
    def _complete(self, plan: ir.Plan) -> ir.Plan:
        """With the compressed weights that it asks for."""
        weights: dict[str, StoredWeight[Form]] = {}
        for decision in plan.decisions:
            weights |= self._stored(self.ground.named[decision.site], decision.options)
        return replace(plan, weights=weights, size=planned_size(self.trial.model, weights))

    def _compile(self, plan: ir.Plan) -> Compiled:
        """By a complete plan; the last few are kept."""
        if not plan.weights and not plan.schedules():
            return self._plain
        key = tuple((name, weight.digest) for name, weight in plan.weights.items()), tuple(plan.schedules().items())
        found = self._compiled.pop(key, None) or self.trial.compile(self.options.with_plan(plan))
        self._compiled[key] = found
        while len(self._compiled) > _KEPT:
            del self._compiled[next(iter(self._compiled))]
        return found

    def _verify(self, plan: ir.Plan) -> Verified:
        try:
            compiled = self._compile(self._complete(plan))
        except UnsupportedError:
            if plan.exact:
                raise
            return Verified(math.nan, math.nan)  # by fallback="error", no plan
        sites: dict[int, Latency] = {}
        if any(d.pass_name != DENSE for d in plan.decisions):
            self.trial.time(compiled)
            sites = self._offers.timed(plan, compiled)
        error = self.trial.error(compiled, self.metric)
        timed = self.budgets.latency is not None
        seconds = math.nan
        if timed:
            seconds = in_turn(lambda: self.trial.seconds(compiled, self._plain), _well_known).median(0)
        return Verified(error.value, seconds, error.margin, sites)

    def _tuned(self, plan: ir.Plan) -> ir.Plan:
        """With schedules by measurement, where the whole model keeps its budget by them and is not slower."""
        cache, before = Cache(self.options.cache_dir), self._compile(plan)
        timer = KernelTimer(self.ground.hardware, cache, seed=0)
        tuner = Tuner(timer, self.ground.pricing.of(()), self.ground.hardware, cache, self.autotune, threads().count())
        found = with_schedules(plan, self.trial, before, tuner)
        notes = (*plan.notes, note(tuner))
        if found is plan:
            return replace(plan, notes=notes)
        after = self._compile(found)
        error, ratio = self.trial.error(after, self.metric), self._times(after, before).ratio(0, 1)
        limit = math.inf if self.budgets.accuracy is None or plan.exact else self.budgets.accuracy
        holds = error.bound <= limit
        if holds and ratio.low <= 1:
            return replace(found, notes=notes).found(error.value, error.margin)
        why = f"the whole model takes {ratio.median:.3g} times as long" if holds else "the budget does not hold"
        return replace(plan, notes=(*notes, f"by these schedules {why}: they are not taken"))

    def _times(self, one: Compiled, other: Compiled) -> Turns:
        """Of whole calls, in turn."""
        return in_turn(lambda: self.trial.seconds(one, other), _settled)

    def _timed(self, plan: ir.Plan) -> ir.Plan:
        """``plan``, with the time of the whole model; where only time is to be gained and none is, the exact model's."""
        turns = self._times(self._compile(plan), self._plain)
        ratio = turns.ratio(0, 1)
        timed = replace(plan, seconds=(turns.median(0), turns.median(1)))
        asked = self.budgets.latency is not None or self.budgets.size is not None
        if asked or (ratio.median < 1 and ratio.high < _SLOWER):
            return timed
        times = f"a call takes {ratio.median:.3g} ({ratio.low:.3g} to {ratio.high:.3g}) times as long by the plan as without it"
        why = "the whole model is not faster"
        kept = tuple(d.dropped(self.ground.named[d.site].spec, why) if _changes(d) else d for d in plan.decisions)
        error = self.trial.error(self._plain, self.metric)
        exact = replace(plan, decisions=kept, notes=(*plan.notes, f"{times}: it stays exact"))
        return replace(
            exact.found(error.value, error.margin),
            weights={},
            size=model_size(self.trial.model),
            seconds=(turns.median(1), turns.median(1)),
        )


def _well_known(turns: Turns) -> bool:
    """Whether medians are, for a budget of time."""
    return len(turns.rounds) >= _ROUNDS


def _settled(turns: Turns) -> bool:
    """Whether one is surely faster than the other."""
    ratio = turns.ratio(0, 1)
    return ratio.high < 1 or ratio.low > 1


def _changes(decision: ir.Decision) -> bool:
    return decision.pass_name != DENSE or decision.changed
