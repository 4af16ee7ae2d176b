"""CPU time of a call on one thread, effc against eager, for the full models of the zoo.

    python tools/cpu_time.py --models resnet50,bert_base

CPU time of one thread hardly changes when other programs use the machine, so these ratios can be trusted where wall time
cannot. The two are called in turn; printed are medians, and the median and range of the ratio round by round.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import zoo


def measure(name: str, rounds: int) -> str:
    """One line for the model ``name``."""
    torch.set_num_threads(1)
    case = zoo.build(name, small=False)
    inputs = case.inputs(0, 0)
    compiled = torch.compile(case.module, backend="effc")

    def seconds(function: Callable[..., Any]) -> float:
        started = time.process_time()
        function(*inputs)
        return time.process_time() - started

    with torch.no_grad():
        for function in (case.module, compiled, compiled):
            function(*copy.deepcopy(inputs))
        pairs = [(seconds(case.module), seconds(compiled)) for _ in range(rounds)]
    ratios = sorted(eager / ours for eager, ours in pairs)
    eager, ours = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
    return (
        f"{name:16} eager {eager:7.1f} ms   effc {ours:7.1f} ms   "
        f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(n for n, entry in zoo.ENTRIES.items() if not entry.recurrent))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(measure(args.one, args.rounds), flush=True)
        return
    for name in args.models.split(","):  # a process each: memory of one model does not slow the next
        subprocess.run([sys.executable, "-P", __file__, "--one", name, "--rounds", str(args.rounds)], check=True)


if __name__ == "__main__":
    main()
