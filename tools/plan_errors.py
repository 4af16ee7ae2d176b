"""Errors of plans for several budgets and metrics: by the batches that a calibration holds out, and on batches that no plan has seen.

    python tools/plan_errors.py --models mobilenet_v2 embeddings --accuracy 0.01 0.02 --worst 0.05 --size 0.6
    python tools/plan_errors.py --out errors.json --minutes 20       # the same command goes on after an interruption

Models are those of `plan_subjects.py`. ``--worst``: budgets of a metric of a user's own, the largest error of an output over the largest
output. ``--size``: budgets of bytes, as a share of the model's own; ``--latency``: of time, as a share of a call of the exact model, which
makes the errors depend on the machine. Printed, by metric: the error by the plan with its margin, on the unseen batches the mean and the
worst of one, the bytes of the weights, and the seconds that the plan took. No times of kernels are needed for the errors, so the machine
may do other things; which plans are found depends on times, though.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from plan_subjects import Subject, subject
from resumed import Kept

import effc
from effc.apart import compiled_apart
from effc.calibrating.calibration import call_of
from effc.compiler.ir.errors import BudgetError
from effc.metrics import UserMetric, metric_of
from effc.planning.groundwork import Groundwork
from effc.planning.search import groundwork, plan_on
from effc.planning.stored_size import model_size
from effc.runtime.structure import flatten


def worst(reference: Any, output: Any, batch: Any) -> float:
    """The largest error of an output, over the largest output."""
    pairs = zip(flatten(reference)[1], flatten(output)[1], strict=True)
    floats = [(r.double(), y.double()) for r, y in pairs if r.is_floating_point()]
    largest = max(float(r.abs().max()) for r, _ in floats)
    return max(float((r - y).abs().max()) for r, y in floats) / largest


def asked(args: argparse.Namespace, ground: Groundwork) -> Iterator[tuple[str, dict[str, Any]]]:
    """Arguments of ``plan_on``, by what they ask for."""
    for budget in args.accuracy:
        yield f"relative_l2 <= {budget:g}", {"accuracy_budget": budget}
    for budget in args.worst:
        yield f"worst <= {budget:g}", {"accuracy_budget": budget, "metric": worst}
    for share in args.size:
        size = share * model_size(ground.trial.model) / 1e6
        yield f"size <= {share:g} of {size / share:.3g} MB", {"size_budget_mb": size}
    for share in args.latency:
        seconds = statistics.median(ground.trial.seconds(ground.plain)[0] for _ in range(15))
        yield f"latency <= {share:g} of the exact model's", {"latency_budget_ms": 1e3 * share * seconds}


def line(chosen: Subject, ground: Groundwork, name: str, given: dict[str, Any]) -> str:
    """A row of the table."""
    metric: str | UserMetric = given.get("metric", "relative_l2")
    started = time.perf_counter()
    try:
        plan = plan_on(ground, **given)
    except BudgetError as error:
        return f"| {chosen.name} | {name} | {error} | | | | |"
    spent = time.perf_counter() - started
    calls = [call_of(batch) for batch in chosen.held_out]
    outputs = chosen.outputs(compiled_apart(chosen.model, effc.Options(plan=plan)))
    of_batch = [
        metric_of(metric)([reference], [output], [(*args, *kwargs.values())])
        for reference, output, (args, kwargs) in zip(chosen.outputs(chosen.model), outputs, calls, strict=True)
    ]
    measured = "–" if plan.measured is None else f"{plan.measured:.2g}"
    margin = "–" if plan.margin is None else f"{plan.margin:.1g}"
    size = 1e-6 * (plan.size or 0)
    cells = (
        name,
        measured,
        margin,
        f"{statistics.fmean(of_batch):.2g}",
        f"{max(of_batch):.2g}",
        f"{size:.3g}",
        f"{spent:.0f}",
    )
    return f"| {chosen.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2"])
    for name, default in (("accuracy", [0.01, 0.02]), ("worst", [0.05]), ("size", [0.6]), ("latency", [])):
        parser.add_argument(f"--{name}", nargs="*", type=float, default=default)
    parser.add_argument("--out", type=Path, help="a file of lines, which may hold some")
    parser.add_argument("--minutes", type=float, default=20.0, help="begin no plan after these")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kept, deadline = Kept(args.out), time.monotonic() + 60 * args.minutes
    for model in args.models:
        chosen = subject(model)
        ground = groundwork(chosen.model, effc.calibrate(chosen.model, chosen.planned))
        for name, given in asked(args, ground):
            if f"{model}: {name}" not in kept and time.monotonic() < deadline:
                kept[f"{model}: {name}"] = line(chosen, ground, name, given)
                print(f"{model}: {name}: done", flush=True)
    print("| model | budget | error by the plan | its margin | on unseen batches | of one | MB | s |")
    print("| --- " * 8 + "|")
    print("\n".join(kept.values()))


if __name__ == "__main__":
    main()
