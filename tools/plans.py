"""Plans end to end: for each model and budget the plan, predicted and measured latency, and its error on data held out, beside every
choice of a single pass and OpenVINO.

    make models && pip install '.[bench]' && apt-get install dataset-fashion-mnist     # once
    python tools/plans.py --threads 2 --json plans.jsonl
    python tools/plans.py --models bert_base embeddings --budgets 0.01 --metrics relative_l2

Models: `plan_subjects.py`. A budget is one of each of ``--metrics`` that fits the model's outputs. Each rival is timed in turn with effc's
exact model, on the first batch (OpenVINO's inputs are copied to where it reads them); times faster: the median of the ratios within rounds,
20th to 80th percentile. ``predicted``: what the plan says that a call takes, over what it took. Errors are those of batches that the plan
was not made from; ``over``: above the budget there, by more than
the plan's own margin.
Lines are added to ``--json`` as they are known.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compressed_speed import passes_of
from plan_subjects import Subject, subject
from rich.console import Console
from rich.table import Table

import effc
from effc.apart import compiled_apart
from effc.bench.spread import Spread
from effc.bench.systems.openvino import OpenVino
from effc.bench.systems.system import Setting, tensors
from effc.calibration import call_of, cloned
from effc.cli.timing import race
from effc.compiler.ir.errors import EffcError
from effc.metrics import metric_of

MODELS = ("resnet50", "mobilenet_v2", "convnext_tiny", "bert_base", "embeddings", "language")
METRICS = {"language": ("relative_l2", "perplexity"), "images": ("relative_l2", "top1_disagreement")}
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
#: Rounds that are not counted.
_WARM = 2


@dataclass(frozen=True)
class Line:
    """A rival. ``ms``: a call; ``faster``: than the exact model; ``predicted``: over measured; ``measured``: the error when the plan was
    made; ``errors``: by metric, held out; ``loss``: of the task; ``seconds``: that making it took; ``failed``: why there is none.
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
        """Whether the plan breaks its budget on data held out by more than its margin; exact code keeps a budget of nothing."""
        if not self.budget or self.metric is None or self.errors is None:
            return False
        return self.errors[self.metric] > self.budget + (self.margin or 0.0)


class Comparison:
    """Rivals of one model."""

    def __init__(self, chosen: Subject, metrics: Sequence[str], rounds: int, threads: int) -> None:
        self.subject, self.metrics, self.rounds, self.threads = chosen, metrics, rounds, threads
        self.calibration = effc.calibrate(chosen.model, chosen.planned)
        self.references = chosen.outputs(chosen.model)
        self.exact = compiled_apart(chosen.model, effc.Options())
        self.cases = None if chosen.task is None else chosen.task.cases()

    def lines(self, budgets: Sequence[float]) -> Iterator[Line]:
        yield self._line("exact", lambda: self.exact)
        for metric in self.metrics:
            for budget in budgets:
                yield self._planned(metric, budget)
        for text in SINGLE:
            options = partial(self._single, text)
            yield self._line(text, options)
        yield self._line("openvino", partial(self._openvino, "float32"))
        yield self._line("openvino int8", partial(self._openvino, "int8"))

    def _planned(self, metric: str, budget: float) -> Line:
        name = f"plan, {metric} <= {budget:g}"
        started = time.perf_counter()
        try:
            plan = effc.plan(self.subject.model, self.calibration, accuracy_budget=budget, metric=metric)
        except EffcError as error:
            return Line(self.subject.name, name, failed=str(error))
        spent = time.perf_counter() - started
        made = self._line(name, lambda: compiled_apart(self.subject.model, effc.Options(plan=plan)))
        known = {**asdict(made), "faster": made.faster, "seconds": spent, "notes": plan.notes}
        if plan.expected is not None and made.ms:
            known["predicted"] = 1e3 * plan.expected / made.ms
        return Line(**{**known, "metric": metric, "budget": budget, "measured": plan.measured, "margin": plan.margin})

    def _single(self, text: str) -> Callable[..., Any]:
        return compiled_apart(self.subject.model, effc.Options(passes=passes_of(text, self.calibration)))

    def _openvino(self, dtype: str) -> Callable[..., Any]:
        system, setting = OpenVino(), Setting(dtype=dtype, threads=self.threads)
        if absent := system.absent(setting):
            raise ValueError(absent)
        first, *_ = batches = [tuple(cloned(tensors(call_of(batch)))) for batch in self.subject.planned]
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


def table(name: str, metrics: Sequence[str], lines: Sequence[Line]) -> Table:
    made = Table("rival", "ms", "times faster", "predicted", *metrics, "task", "s", "", title=name)
    for line in lines:
        if line.failed is not None or line.faster is None:
            made.add_row(line.rival, *[""] * (5 + len(metrics)), line.failed)
            continue
        ratio = f"{line.faster.median:.2f} ({line.faster.low:.2f}-{line.faster.high:.2f})"
        predicted = "" if line.predicted is None else f"{line.predicted:.2f}"
        errors = [f"{line.errors[m]:.2g}" if line.errors else "" for m in metrics]
        loss = "" if line.loss is None else f"{line.loss:.3f}"
        made.add_row(
            line.rival,
            f"{line.ms:.2f}",
            ratio,
            predicted,
            *errors,
            loss,
            f"{line.seconds:.0f}",
            "over" if line.over else "",
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.0, 0.005, 0.01, 0.02])
    parser.add_argument("--metrics", nargs="+", help="of those that fit the model; default: all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="a file to which a line of JSON is added for every rival")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.models:
        torch._dynamo.reset()
        metrics = [m for m in METRICS.get(name, ("relative_l2",)) if args.metrics is None or m in args.metrics]
        found = []
        for line in Comparison(subject(name), metrics, args.rounds, args.threads).lines(args.budgets):
            found.append(line)
            print(f"{line.model}: {line.rival}: {line.failed or f'{line.ms:.2f} ms'}", flush=True)
            if args.json is not None:
                with args.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**asdict(line), "over": line.over}) + "\n")
        Console(width=180).print(table(name, metrics, found))


if __name__ == "__main__":
    main()
