"""Where ``effc.plan`` spends its time: seconds by stage, calibration apart.

    python tools/planning_time.py --models mobilenet_v2 resnet50
    python tools/planning_time.py --models bert_base --passes '{"low_rank": false, "sparsity": false}'

Models are those of `plan_subjects.py`. A stage is what runs in functions of this name, less what runs in other stages inside. ``dense``:
compiling the exact model, which a model without a plan needs too. Code that an earlier run has left in the cache is not compiled again:
``--cache FOLDER``, an empty one, for a first plan.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from plan_subjects import subject

import effc
from effc.costmodel.planner import Planner
from effc.planning.groundwork import Groundwork
from effc.planning.offers import _Offering
from effc.planning.search import groundwork, plan_on
from effc.planning.sensitivity import Sensitivity
from effc.planning.trial import Trial

#: What is timed: the owner of a function, its name, and the stage.
STAGES: tuple[tuple[type, str, str], ...] = (
    (Groundwork, "offers", "offers"),
    (_Offering, "_make", "errors"),
    (Sensitivity, "of", "sensitivities"),
    (Trial, "compress", "compressing"),
    (Trial, "lower", "lowering"),
    (Planner, "plan", "choosing"),
    (Trial, "compile", "compiling plans"),
    (Trial, "time", "timing kernels"),
    (Trial, "error", "whole errors"),
    (Trial, "seconds", "timing calls"),
)


class Stages:
    """``seconds`` and ``calls`` by stage, each second counted in the innermost one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._inside: list[str] = []
        self._since = 0.0

    def switch(self) -> None:
        now = time.perf_counter()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def of(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.switch()
            self._inside.append(stage)
            self.calls[stage] += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.switch()
                self._inside.pop()

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet50", "bert_base"])
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--passes", type=json.loads, default={}, help="JSON")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", help="a folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options: dict[str, Any] = {"passes": args.passes}
    if args.cache:
        options["cache_dir"] = args.cache
    stages = Stages()
    for owner, name, stage in STAGES:
        setattr(owner, name, stages.of(stage, getattr(owner, name)))
    for name in args.models:
        chosen = subject(name)
        started = time.perf_counter()
        calibration = effc.calibrate(chosen.model, chosen.planned)
        calibrated = time.perf_counter()
        ground = groundwork(chosen.model, calibration, options)
        assert ground.plain.sites, "the exact model has kernels"
        dense = time.perf_counter()
        stages.seconds.clear()
        stages.calls.clear()
        plan = stages.of("else", plan_on)(ground, accuracy_budget=args.budget)
        spent = time.perf_counter() - dense
        print(f"{name}: {spent:.1f} s; calibrated in {calibrated - started:.1f} s, dense in {dense - calibrated:.1f} s")
        for stage, seconds in sorted(stages.seconds.items(), key=lambda found: -found[1]):
            print(f"  {stage:16} {seconds:6.1f} s, {stages.calls[stage]} times")
        print("\n".join(plan.summary()), flush=True)


if __name__ == "__main__":
    main()
