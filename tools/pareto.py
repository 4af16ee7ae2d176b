"""Accuracy against latency of every way to compress a model, alone and together, and which of them no other beats in both.

    make models && apt-get install dataset-fashion-mnist     # once
    python tools/pareto.py --tasks embeddings images --seeds 3 --threads 2
    python tools/pareto.py --rows low_rank --seeds 1
    python tools/pareto.py --kept found.json --rounds 0; python tools/pareto.py --kept found.json

A row is the option ``passes``, as a user writes it. Its loss is what the compiled model loses on the cases of `accuracy_tasks.py`, the mean
over the seeds, with the 95 % interval by the bootstrap over cases; its time is that of a call on the first calibration batch of the first
seed, in turn with effc's exact model (medians; 20th to 80th percentile of the ratio over the rounds). With a file of what is kept an
interrupted run goes on, and losses, which do not mind what else the machine does, are measured before times: so in the last line.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accuracy_table import interval
from accuracy_tasks import TASKS, Task
from compressed_speed import passes_of
from resumed import Kept
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

import effc
from effc.bench.spread import Spread
from effc.calibrating.calibration import call_of
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


@dataclass(frozen=True)
class Asked:
    """``seeds``: for the loss; 0 for times alone. ``rounds``: for the time; 0 for losses alone. ``gradients``: calibration runs batches
    backwards too. ``threads``: of the times.
    """

    kind: str
    seeds: int
    rounds: int
    gradients: bool
    threads: int

    def cases(self, row: str, seed: int) -> str:
        """Under which name the cases of a row are kept, of the exact model's where it is empty; null where the row is refused."""
        return f"{self.kind}, seed {seed}{', gradients' * self.gradients}: {row}"

    def times(self, row: str) -> str:
        """Seconds of each round of the exact model, and of a row's."""
        return f"times on {self.threads} threads of {self.cases(row, 0)}"


def measure(asked: Asked, rows: Sequence[str], kept: Kept) -> None:
    """Put into ``kept`` what it does not hold of the rows."""
    for seed in range(max(asked.seeds, 1)):
        named = [asked.cases(row, seed) for row in ("", *rows)] if asked.seeds else []
        if not seed and asked.rounds:
            named += [asked.times(row) for row in rows]
        if all(name in kept for name in named):
            continue
        task = TASKS[asked.kind](seed)
        sensitivity = task.sensitivity if asked.gradients else None
        calibration = effc.calibrate(task.model, task.calibration, sensitivity=sensitivity, held_out=0)
        if asked.seeds and asked.cases("", seed) not in kept:
            kept[asked.cases("", seed)] = task.cases().tolist()
        for row in rows:
            _measure_row(asked, task, calibration, seed, row, kept)


def _measure_row(asked: Asked, task: Task, calibration: effc.Calibration, seed: int, row: str, kept: Kept) -> None:
    model, cases, times = task.model, asked.cases(row, seed), asked.times(row)
    needed = bool(asked.seeds) and cases not in kept
    raced = not seed and bool(asked.rounds) and times not in kept
    if not needed and not raced:
        return
    torch._dynamo.reset()  # or the models of other rows count as recompilations of this one
    fast = compiled(model, {"passes": passes_of(row, calibration)})
    try:
        if raced:
            kept[times] = timed({"exact": compiled(model, {}), "row": fast}, task.calibration[0], asked.rounds)
        if needed:
            task.model = fast
            kept[cases] = task.cases().tolist()
            print(f"{task.loss(*(_cases(kept[asked.cases(r, seed)]) for r in ('', row))):9.3f}  {cases}", flush=True)
    except BackendCompilerFailed as err:  # a pattern that does not divide a weight, say
        print(f"refused  {row}: {err.inner_exception}", flush=True)
        if needed:
            kept[cases] = None
        if raced:
            kept[times] = None
    finally:
        task.model = model


def points(asked: Asked, rows: Sequence[str], kept: Kept) -> dict[str, Point]:
    """Of the rows of which all that a point says is kept."""
    found = {}
    for row in rows:
        named = [asked.times(row), *(asked.cases(row, seed) for seed in range(asked.seeds))]
        if not asked.seeds or any(name not in kept or kept[name] is None for name in named):
            continue
        losses = [[_cases(kept[asked.cases(r, seed)]) for seed in range(asked.seeds)] for r in ("", row)]
        exact, own = kept[asked.times(row)]
        loss = interval(TASKS[asked.kind], *losses)
        found[row] = Point(loss, Spread.of(own).median, Spread.of_ratios(exact, own))
    return found


def _cases(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def compiled(model: nn.Module, options: dict[str, Any]) -> nn.Module:
    """A shape of inputs has a compiled model of its own, as it has where one is served."""
    fast = torch.compile(model, backend="effc", options=options or None, dynamic=False)
    assert isinstance(fast, nn.Module)
    return fast


@torch.no_grad()
def timed(calls: Mapping[str, nn.Module], batch: Any, rounds: int) -> list[list[float]]:
    """Seconds a call of ``exact``, and of ``row``, in each round."""
    args, kwargs = call_of(batch)
    rivals = {name: partial(call, *args, **kwargs) for name, call in calls.items()}
    found = list(race(rivals, rounds + _WARM))[_WARM:]
    return [[r[name] for r in found] for name in ("exact", "row")]


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
        (_THIN, _pruned("unstructured", 0.5)),
        (_pruned("channel", 0.1), _TENSOR),
        (_pruned("unstructured", 0.5), _TOKEN),
        (_pruned("unstructured", 0.5), _TENSOR),
    )
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["embeddings", "images"])
    parser.add_argument("--seeds", type=int, default=3, help="for the loss; 0: times alone")
    parser.add_argument("--rounds", type=int, default=15, help="for the time; 0: losses alone")
    parser.add_argument("--rows", default="", help="a regular expression: only rows whose options it finds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gradients", action="store_true", help="calibrate with sensitivities")
    parser.add_argument("--kept", type=Path, help="a file of results: what it holds is not measured again")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows, kept = [row for row in ROWS if re.search(args.rows, row)], Kept(args.kept)
    for kind in args.tasks:
        asked = Asked(kind, args.seeds, args.rounds, args.gradients, args.threads)
        measure(asked, rows, kept)
        Console(width=200).print(table(kind, TASKS[kind].figure, points(asked, rows, kept)))


if __name__ == "__main__":
    main()
