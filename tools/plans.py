"""Plans end to end: for each model and budget the plan, predicted and measured latency, and its error on data held out, beside every
choice of a single pass and OpenVINO.

    make models && pip install '.[bench]' && apt-get install dataset-fashion-mnist     # once
    python tools/plans.py --out plans --minutes 45
    python tools/plans.py --out plans --models bert_base embeddings --budgets 0.01 --rivals 'plan|openvino'
    python tools/plans.py --out plans --minutes 0      # only the tables of what is there

Models: `plan_subjects.py`. A budget is one of each of the metrics that fit the model's outputs. Each rival is timed in turn with effc's
exact model, on the first batch (OpenVINO's inputs are copied to where it reads them, and its int8 calibrated by batches cut or padded to
the first one's shape); times faster: the median of the ratios within rounds,
20th to 80th percentile. ``predicted``: what the plan says that a call takes, over what it took. Errors are those of batches that the plan
was not made from; ``over``: above the budget there. ``s``: seconds to make the plan, of a
model's first with what all of its plans stand on; of another rival to compile it and to measure it.

Each model has an even share of the time, in which the first budget comes first: its plans, OpenVINO, and codes alone by one pass; then
other budgets, then the other passes. Each has a process of its own and a file in ``--out``, to which each rival is added when it is known:
the same command goes on after an interruption, and a rival in which a process ended is not tried again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from resumed import Kept

MODELS = ("mobilenet_v2", "embeddings", "resnet50", "bert_base", "language", "convnext_tiny", "images")
#: Exit status of a process that had no time for all rivals.
_UNFINISHED = 3
#: How often a model is gone on with while there is time, and the least minutes of it: calibration alone takes some.
_PASSES, _LEAST = 2, 0.5


def results(args: argparse.Namespace, name: str) -> Kept:
    """Of one model, by rival: what its `Line` holds."""
    return Kept(args.out / f"{name}.json")


def measure(args: argparse.Namespace, name: str) -> int:
    """In this process, the rivals of one model that have no file. The exit status."""
    import torch
    from plan_rivals import METRICS, Comparison
    from plan_subjects import subject

    torch.set_num_threads(args.threads)
    kept, deadline = results(args, name), time.monotonic() + 60 * args.minutes
    comparison = Comparison(subject(name), METRICS.get(name, ("relative_l2",)), args.rounds, args.threads)
    for rival, measured in comparison.rivals(args.budgets).items():
        if rival in kept or not re.search(args.rivals, rival):
            continue
        if time.monotonic() > deadline:
            return _UNFINISHED
        kept[rival] = {"rival": rival, "failed": "the process ended while it was measured"}
        line = measured()
        kept[rival] = {**asdict(line), "over": line.over}
        print(f"{name}: {rival}: {line.failed or f'{line.ms:.2f} ms'}", flush=True)
    return 0


def start(args: argparse.Namespace, name: str, minutes: float) -> int:
    """`measure` in a process of its own; again where one ends in the midst of a rival. The exit status of the last."""
    command = [sys.executable, __file__, "--one", name, "--out", str(args.out), "--minutes", f"{minutes:g}"]
    command += ["--rounds", str(args.rounds), "--threads", str(args.threads), "--rivals", args.rivals]
    command += ["--budgets", *map(str, args.budgets)]
    before, known = -1, len(results(args, name).values())
    status, deadline = 1, time.monotonic() + 60 * minutes
    while status not in (0, _UNFINISHED) and known > before and time.monotonic() < deadline:
        status = subprocess.run(command, check=False).returncode
        before, known = known, len(results(args, name).values())
    return status


def table(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """As Markdown."""
    metrics = list(dict.fromkeys(metric for line in lines for metric in line.get("errors") or {}))
    heads = ["rival", "ms", "times faster", "predicted", *metrics, "task", "s", ""]
    rows = [heads, ["---"] * len(heads), *(_row(line, metrics) for line in lines)]
    return "\n".join([f"## {name}", "", *("| " + " | ".join(row) + " |" for row in rows), ""])


def _row(line: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    rival = line["rival"].replace("|", "\\|")
    if line.get("failed") or not line.get("faster"):
        return [rival, *[""] * (5 + len(metrics)), str(line.get("failed"))]
    faster = line["faster"]
    ratio = f"{faster['median']:.2f} ({faster['low']:.2f}-{faster['high']:.2f})"
    errors = [f"{line['errors'][m]:.2g}" if line.get("errors") else "" for m in metrics]
    predicted, task = (_number(line.get(key), digits) for key, digits in (("predicted", 2), ("loss", 3)))
    return [
        rival,
        f"{line['ms']:.2f}",
        ratio,
        predicted,
        *errors,
        task,
        f"{line['seconds']:.0f}",
        "over" * line["over"],
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder of results, which may hold some")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.01, 0.02, 0.005, 0.0])
    parser.add_argument("--rivals", default="", help="a regular expression: only those whose names it finds")
    parser.add_argument("--minutes", type=float, default=45.0, help="begin no rival after these")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        sys.exit(measure(args, args.one))
    deadline = time.monotonic() + 60 * args.minutes
    statuses = dict.fromkeys(args.models, _UNFINISHED)
    for _ in range(_PASSES):  # the second with what others have left of their time
        unfinished = [name for name, status in statuses.items() if status == _UNFINISHED]
        for number, name in enumerate(unfinished):
            left = (deadline - time.monotonic()) / 60 / (len(unfinished) - number)
            if left > _LEAST:
                statuses[name] = start(args, name, left)
    failed = [name for name, status in statuses.items() if status not in (0, _UNFINISHED)]
    for name in args.models:
        if found := results(args, name).values():
            print(table(name, found))
    if failed:
        sys.exit(f"the process of {', '.join(failed)} ended before all was measured")


if __name__ == "__main__":
    main()
