"""What ``effc.plan`` makes of a pretrained model: how long it takes, what it chooses, and what the plan costs and gains.

    make models && apt-get install dataset-fashion-mnist
    python tools/planned.py --task embeddings --budget 0.04 --threads 2

The models and their calibration batches are those of `accuracy_tasks.py`; the plan's error is measured by ``effc.plan`` on the whole
model, for batches that it holds out. Printed: the plan, and a call's time with it and without, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from accuracy_tasks import TASKS

import effc
from effc.bench.spread import Spread
from effc.calibrating.calibration import call_of


def milliseconds(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Of each call, by round, in turn."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:
                found[name].append(1e3 * (time.perf_counter() - started))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(TASKS), default="embeddings")
    parser.add_argument("--budget", type=float, default=0.04)
    parser.add_argument("--metric", default="relative_l2")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    task = TASKS[args.task](0)
    batches = task.calibration
    with torch.no_grad():
        started = time.perf_counter()
        calibration = effc.calibrate(task.model, batches)
        calibrated = time.perf_counter()
        plan = effc.plan(task.model, calibration, accuracy_budget=args.budget, metric=args.metric)
        planned = time.perf_counter()
        print(plan)
        print(f"calibrated in {calibrated - started:.0f} s, planned in {planned - calibrated:.0f} s")
        options: dict[str, dict[str, Any]] = {"exact": {}, "planned": {"plan": plan}}
        given, kwargs = call_of(batches[0])
        calls = {
            name: partial(torch.compile(task.model, backend="effc", options=chosen), *given, **kwargs)
            for name, chosen in options.items()
        }
        times = milliseconds(calls, args.rounds)
    ratio = Spread.of_ratios(times["exact"], times["planned"])
    print(", ".join(f"{name} {statistics.median(ms):.1f} ms" for name, ms in times.items()), end="")
    print(f": {ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})")


if __name__ == "__main__":
    main()
