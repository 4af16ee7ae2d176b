"""Accuracy against latency of every way to compress a model, alone and together, and which of them no other beats in both.

    make models && apt-get install dataset-fashion-mnist     # once
    python tools/pareto.py --tasks embeddings images --seeds 3 --threads 2
    python tools/pareto.py --rows low_rank --seeds 1

A row is the option ``passes``, as a user writes it. Its loss is what the compiled model loses on the cases of `accuracy_tasks.py`, the mean
over the seeds, with the 95 % interval by the bootstrap over cases; its time is that of a call on the first calibration batch of the first
seed, in turn with effc's exact model (medians; 20th to 80th percentile of the ratio over the rounds).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accuracy_table import interval
from accuracy_tasks import TASKS
from compressed_speed import passes_of
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

import effc
from effc.bench.spread import Spread
from effc.calibration import call_of
from effc.cli.timing import race

#: Rounds that are not counted.
_WARM = 2


@dataclass(frozen=True)
class Point:
    """``loss``: its mean, and the interval; ``seconds`` a call; ``faster``: than the exact model."""

    loss: tuple[float, float, float]
    seconds: float
    faster: Spread

    def beats(self, other: Point) -> bool:
        """In one of loss and time, and in the other too or alike."""
        pair, others = (self.loss[0], -self.faster.median), (other.loss[0], -other.faster.median)
        return pair != others and all(a <= b for a, b in zip(pair, others, strict=True))


def points(kind: str, rows: Sequence[str], seeds: int, rounds: int, gradients: bool) -> tuple[str, dict[str, Point]]:
    """What the loss is called, and each row's; ``gradients``: calibration runs batches backwards too."""
    exact: list[Tensor] = []
    found: dict[str, list[Tensor]] = {row: [] for row in rows}
    times: dict[str, tuple[float, Spread]] = {}
    for seed in range(seeds):
        task = TASKS[kind](seed)
        model = task.model
        calibration = effc.calibrate(model, task.calibration, sensitivity=task.sensitivity if gradients else None)
        exact.append(task.cases())
        for row in rows:
            torch._dynamo.reset()  # or the models of other rows count as recompilations of this one
            fast = compiled(model, {"passes": passes_of(row, calibration)})
            try:
                if not seed:
                    times[row] = timed({"exact": compiled(model, {}), "row": fast}, task.calibration[0], rounds)
                task.model = fast
                found[row].append(task.cases())
            except BackendCompilerFailed as err:  # a pattern that does not divide a weight, say
                print(f"{kind}, seed {seed}  refused    {row}: {err.inner_exception}", flush=True)
                continue
            finally:
                task.model = model
            print(f"{kind}, seed {seed}  {task.loss(exact[-1], found[row][-1]):9.3f}  {row}", flush=True)
    return task.figure, {row: Point(interval(task, exact, found[row]), *times[row]) for row in rows if found[row]}


def compiled(model: nn.Module, options: dict[str, Any]) -> nn.Module:
    """A shape of inputs has a compiled model of its own, as it has where one is served."""
    fast = torch.compile(model, backend="effc", options=options or None, dynamic=False)
    assert isinstance(fast, nn.Module)
    return fast


@torch.no_grad()
def timed(calls: Mapping[str, nn.Module], batch: Any, rounds: int) -> tuple[float, Spread]:
    """Seconds a call of ``row``, and how many times it is faster than ``exact``."""
    args, kwargs = call_of(batch)
    rivals = {name: partial(call, *args, **kwargs) for name, call in calls.items()}
    kept = list(race(rivals, rounds + _WARM))[_WARM:]
    exact, row = ([r[name] for r in kept] for name in ("exact", "row"))
    return Spread.of(row).median, Spread.of_ratios(exact, row)


def table(title: str, figure: str, found: Mapping[str, Point]) -> Table:
    """Fastest first, by the ratio, which other users of the machine move less; a star where no row is both faster and better."""
    made = Table("", "passes", "ms", "times faster", figure, "95 % interval", title=title)
    for row, point in sorted(found.items(), key=lambda item: -item[1].faster.median):
        best = not any(other.beats(point) for other in found.values())
        loss, low, high = point.loss
        ratio = f"{point.faster.median:.2f} ({point.faster.low:.2f}-{point.faster.high:.2f})"
        made.add_row(
            "*" if best else "", row, f"{1e3 * point.seconds:.2f}", ratio, f"{loss:.3f}", f"{low:.3f} to {high:.3f}"
        )
    return made


def _cal(text: str) -> str:
    """Options that look at the activations of a calibration."""
    return text[:-1] + ', "calibration": true}'


_INT8 = '"quantize": {"weights": "int8"}'
_TOKEN = '"quantize": ' + _cal('{"activations": "token", "smoothing": "smoothquant"}')
_TENSOR = '"quantize": ' + _cal('{"activations": "tensor"}')
_INT4 = '"quantize": ' + _cal('{"weights": "int4", "rounding": "gptq", "clipping": "mse"}')
_THIN, _THINNER = ('"low_rank": ' + _cal(f'{{"rank_ratio": {r}, "method": "output"}}') for r in (0.375, 0.25))


def _pruned(pattern: str, share: float | None = None, *, rearrange: bool = False) -> str:
    asked = ("" if share is None else f', "sparsity": {share}') + ', "rearrange": true' * rearrange
    return '"sparsity": ' + _cal(f'{{"pattern": "{pattern}"{asked}, "method": "sparsegpt"}}')


ROWS = [
    "{" + ", ".join(parts) + "}"
    for parts in (
        (),
        (_INT8,),
        (_TOKEN,),
        (_TENSOR,),
        (_INT4,),
        (_THIN,),
        (_THINNER,),
        (_pruned("unstructured", 0.5),),
        (_pruned("unstructured", 0.7),),
        (_pruned("2:4"),),
        (_pruned("4x1", 0.3),),
        (_pruned("16x1", 0.3),),
        (_pruned("16x1", 0.5),),
        (_pruned("4x1", 0.3, rearrange=True),),
        (_pruned("4xkernel", 0.3),),
        (_pruned("4xkernel", 0.3, rearrange=True),),
        (_pruned("channel", 0.1),),
        (_pruned("channel", 0.3),),
        (_THIN, _INT8),
        (_THIN, _TOKEN),
        (_THIN, _TENSOR),
        (_pruned("channel", 0.1), _TENSOR),
        (_pruned("unstructured", 0.5), _TOKEN),
        (_pruned("unstructured", 0.5), _TENSOR),
    )
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["embeddings", "images"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", default="", help="a regular expression: only rows whose options it finds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gradients", action="store_true", help="calibrate with sensitivities")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for row in ROWS if re.search(args.rows, row)]
    for kind in args.tasks:
        Console(width=200).print(table(kind, *points(kind, rows, args.seeds, args.rounds, args.gradients)))


if __name__ == "__main__":
    main()
