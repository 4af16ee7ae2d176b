"""The rivals of `plans.py` for one model: plans, choices of one pass, OpenVINO; each timed in turn with effc's exact model."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from compressed_speed import passes_of
from plan_subjects import Subject
from torch import nn

import effc
from effc.apart import compiled_apart
from effc.bench.spread import Spread
from effc.bench.systems.openvino import OpenVino
from effc.bench.systems.system import Setting, tensors
from effc.calibrating.calibration import call_of, cloned
from effc.cli.timing import race
from effc.compiler.ir.errors import EffcError
from effc.compiler.ir.pattern import Pattern
from effc.metrics import metric_of
from effc.planning.search import groundwork, plan_on

#: Metrics of models that have others than relative L2; the task's first.
METRICS = {"language": ("perplexity", "relative_l2"), "images": ("top1_disagreement", "relative_l2")}
#: The option ``passes`` of each choice of one pass.
SINGLE = (
    '{"quantize": {}}',
    '{"quantize": {"activations": "token", "smoothing": "smoothquant", "calibration": true}}',
    '{"quantize": {"activations": "tensor", "calibration": true}}',
    '{"quantize": {"weights": "int4", "smoothing": "awq", "rounding": "gptq", "calibration": true}}',
    '{"low_rank": {"rank_ratio": 0.375, "method": "output", "calibration": true}}',
    '{"low_rank": {"rank_ratio": 0.25, "method": "output", "calibration": true}}',
    '{"sparsity": {"pattern": "16x1", "sparsity": 0.5, "method": "sparsegpt", "calibration": true}}',
    '{"sparsity": {"pattern": "2:4", "method": "sparsegpt", "calibration": true}}',
)
#: Of these the first are codes alone, which are the most likely to keep a budget.
_CODES = 3
#: Rounds that are not counted.
_WARM = 2


@dataclass(frozen=True)
class Line:
    """A rival. ``ms``: a call; ``faster``: than the exact model; ``predicted``: over measured; ``measured``: the error when the plan was
    made; ``errors``: by metric, held out; ``loss``: of the task; ``seconds``: that making the plan took, or compiling
    and measuring another rival; ``failed``: why there is none.
    """

    model: str
    rival: str
    ms: float | None = None
    faster: Spread | None = None
    predicted: float | None = None
    metric: str | None = None
    budget: float | None = None
    measured: float | None = None
    margin: float | None = None
    errors: dict[str, float] | None = None
    loss: float | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    failed: str | None = None

    @property
    def over(self) -> bool:
        """Whether the plan breaks its budget on data held out; exact code keeps a budget of nothing."""
        if not self.budget or self.metric is None or self.errors is None:
            return False
        return self.errors[self.metric] > self.budget


def _undivided(model: nn.Module, pattern: str) -> list[str]:
    """Weights that the pattern does not divide, which a pass would refuse."""
    parsed = Pattern.parse(pattern)
    return [name for name, p in model.named_parameters() if p.dim() > 1 and parsed.misfit(name, p.shape)]


class Comparison:
    """Rivals of one model."""

    def __init__(self, chosen: Subject, metrics: Sequence[str], rounds: int, threads: int) -> None:
        self.subject, self.metrics, self.rounds, self.threads = chosen, metrics, rounds, threads
        self.calibration = effc.calibrate(chosen.model, chosen.planned)
        self.ground = groundwork(chosen.model, self.calibration)
        self.references = chosen.outputs(chosen.model)
        self.exact = compiled_apart(chosen.model, effc.Options())
        self.cases = None if chosen.task is None else chosen.task.cases()

    def rivals(self, budgets: Sequence[float]) -> Mapping[str, Callable[[], Line]]:
        """What measures each rival, by name, the most telling first: plans of the first budget, beside what else there is."""
        found: dict[str, Callable[[], Line]] = {"exact": partial(self._line, "exact", lambda: self.exact)}
        plans = [
            (f"plan, {m} <= {b:g}", partial(self._planned, f"plan, {m} <= {b:g}", m, b))
            for b in budgets
            for m in self.metrics
        ]
        singles = [(text, partial(self._line, text, partial(self._single, text))) for text in SINGLE]
        first = len(self.metrics)
        found |= dict(plans[:first])
        for dtype, name in (("float32", "openvino"), ("int8", "openvino int8")):
            found[name] = partial(self._line, name, partial(self._openvino, dtype))
        return found | dict(singles[:_CODES]) | dict(plans[first:]) | dict(singles[_CODES:])

    def _planned(self, name: str, metric: str, budget: float) -> Line:
        started = time.perf_counter()
        try:
            plan = plan_on(self.ground, accuracy_budget=budget, metric=metric)
        except EffcError as error:
            return Line(self.subject.name, name, failed=str(error))
        spent = time.perf_counter() - started
        made = self._line(name, lambda: compiled_apart(self.subject.model, effc.Options(plan=plan)))
        known = {**asdict(made), "faster": made.faster, "seconds": spent, "notes": plan.notes}
        if plan.expected is not None and made.ms:
            known["predicted"] = 1e3 * plan.expected / made.ms
        return Line(**{**known, "metric": metric, "budget": budget, "measured": plan.measured, "margin": plan.margin})

    def _single(self, text: str) -> Callable[..., Any]:
        passes = passes_of(text, self.calibration)
        if "sparsity" in passes:
            passes["sparsity"]["skip"] = _undivided(self.subject.model, passes["sparsity"]["pattern"])
        return compiled_apart(self.subject.model, effc.Options(passes=passes))

    def _openvino(self, dtype: str) -> Callable[..., Any]:
        system, setting = OpenVino(), Setting(dtype=dtype, threads=self.threads)
        if absent := system.absent(setting):
            raise ValueError(absent)
        first, *_ = batches = [tuple(cloned(tensors(call_of(batch)))) for batch in self.subject.in_one_shape().planned]
        run = system.prepare(self.subject.positional(), first, setting, batches)

        def call(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
            """Whose inputs lie where those of the first batch do. ValueError: they have other shapes."""
            given = tensors((args, kwargs))
            if [t.shape for t in given] != [t.shape for t in first]:
                raise ValueError("prepared for other shapes")
            for place, tensor in zip(first, given, strict=True):
                place.copy_(tensor)
            return [t.clone() for t in run()]

        return call

    def _line(self, name: str, make: Callable[[], Callable[..., Any]]) -> Line:
        started = time.perf_counter()
        try:
            call = make()
            ms, faster = self._times(call)
        except (EffcError, RuntimeError, ValueError, TypeError) as error:
            return Line(self.subject.name, name, failed=str(error).partition("\n")[0])
        errors: dict[str, float] | None = None
        loss: float | None = None
        with suppress(ValueError):  # of what takes one shape only
            outputs = self.subject.outputs(call)
            errors = {m: metric_of(m)(self.references, outputs, self._batches) for m in self.metrics}
            loss = self.subject.loss(call, self.cases)
        del call
        gc.collect()
        return Line(
            self.subject.name, name, ms, faster, errors=errors, loss=loss, seconds=time.perf_counter() - started
        )

    @property
    def _batches(self) -> list[Any]:
        return [(*args, *kwargs.values()) for args, kwargs in map(call_of, self.subject.held_out)]

    @torch.no_grad()
    def _times(self, call: Callable[..., Any]) -> tuple[float, Spread]:
        args, kwargs = call_of(self.subject.planned[0])
        rivals = {"exact": partial(self.exact, *args, **kwargs), "rival": partial(call, *args, **kwargs)}
        kept = list(race(rivals, self.rounds + _WARM))[_WARM:]
        exact, rival = ([r[name] for r in kept] for name in ("exact", "rival"))
        return 1e3 * Spread.of(rival).median, Spread.of_ratios(exact, rival)
