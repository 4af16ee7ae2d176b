"""What activation sparsity costs in perplexity: SmolLM2-135M compiled with it, against the exact model, with confidence intervals.

    make models     # once
    python tools/activation_accuracy.py --seeds 3 --threads 2
    python tools/activation_accuracy.py --rows 'cats.*50' --seeds 1     # minutes

`accuracy_tasks.py` says what the task is: 8 windows of 256 tokens a seed, thresholds from 8 windows of other text.
"""

from __future__ import annotations

import argparse
import re
from itertools import product
from typing import Any

import torch
from accuracy_table import interval
from accuracy_tasks import Language
from rich.console import Console
from rich.table import Table
from torch import Tensor

import effc

#: What is left out for the MLPs alone.
_ATTENTION = ("*self_attn*",)
_METHODS = {
    "cats, MLPs": ("cats", ()),
    "chess, MLPs": ("chess", _ATTENTION),
    "chess, MLPs and attention": ("chess", ()),
}
_SHARES = (0.3, 0.5, 0.7)
ROWS = {f"{name}, {share:.0%}": (*_METHODS[name], share) for share, name in product(_SHARES, _METHODS)}


def cases(task: Language, calibration: effc.Calibration, row: str) -> Tensor:
    """As `Language.cases`, of the model compiled as ``row`` says."""
    method, skip, share = ROWS[row]
    sparse = {"method": method, "skip": skip, "sparsity": share, "calibration": calibration}
    options: dict[str, Any] = {"passes": {"activation_sparsity": sparse}}
    exact = task.model
    torch._dynamo.reset()
    compiled: Any = torch.compile(exact, backend="effc", options=options)
    task.model = compiled
    found = task.cases()
    task.model = exact
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", default="", help="a regular expression: only rows whose name it finds")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = [row for row in ROWS if re.search(args.rows, row)]
    exact: list[Tensor] = []
    found: dict[str, list[Tensor]] = {row: [] for row in chosen}
    for seed in range(args.seeds):
        task = Language(seed)
        calibration = effc.calibrate(task.model, task.calibration, second_moments=False, held_out=0)
        exact.append(task.cases())
        for row in chosen:
            found[row].append(cases(task, calibration, row))
            print(f"seed {seed}  {row:36} {task.loss(exact[-1], found[row][-1]):9.3f}", flush=True)
    table = Table("zeros", task.figure, "95 % interval")
    for row in chosen:
        mean, low, high = interval(task, exact, found[row])
        table.add_row(row, f"{mean:.2f}", f"{low:.2f} to {high:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
