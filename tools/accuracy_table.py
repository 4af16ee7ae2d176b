"""How good models are with compressed weights, by rows of a table, over seeds, with confidence intervals.

The models run in eager with the weights that their compressed forms stand for; where a format has int8 activations, those that meet a
quantized weight are rounded. A row's figure is the mean over the seeds, with its 95 % interval by the bootstrap over the cases of all seeds
(windows, pairs, images). Lower is better; `accuracy_tasks.py` says what the tasks are.
"""

from __future__ import annotations

import argparse
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accuracy_tasks import TASKS, Task
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import effc
from effc.compiler.compress.activations import held
from effc.compiler.compress.form import Form
from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.low_rank.filters import FilterChain
from effc.compiler.compress.quantized import QuantizedWeight


class Row(ABC):
    """One way to compress a model. ``cells``: what the table says of it, in the order of its headings; ``size``: in the next column."""

    cells: tuple[str, ...]

    @property
    def name(self) -> str:
        return ", ".join(self.cells)

    @abstractmethod
    def compress(self, task: Task, calibration: effc.Calibration) -> Mapping[str, Form]:
        """The compressed forms of the task's weights, by name."""

    @abstractmethod
    def size(self, task: Task, forms: Mapping[str, Form]) -> str:
        """What is left."""


def measure(kind: Callable[[int], Task], seeds: int, rows: Sequence[Row], headings: Sequence[str]) -> Table:
    exact: list[Tensor] = []
    found: dict[str, list[Tensor]] = {row.name: [] for row in rows}
    size: dict[str, str] = {}
    for seed in range(seeds):
        task = kind(seed)
        calibration = effc.calibrate(task.model, task.calibration, sensitivity=task.sensitivity, held_out=0)
        exact.append(task.cases())
        for row in rows:
            started = time.perf_counter()
            forms = row.compress(task, calibration)
            took = time.perf_counter() - started
            with put_into(task, calibration, forms):
                found[row.name].append(task.cases())
            size[row.name] = row.size(task, forms)
            figure = task.loss(exact[-1], found[row.name][-1])
            seconds = f"{took:5.1f} + {time.perf_counter() - started - took:.1f} s"
            print(f"seed {seed}  {row.name:44} {figure:9.3f}  {seconds}", flush=True)
    table = Table(*headings, task.figure, "95 % interval", title=f"{type(task).__name__}, groups of {task.group}")
    for row in rows:
        mean, low, high = interval(task, exact, found[row.name])
        table.add_row(*row.cells, size[row.name], f"{mean:.3f}", f"{low:.3f} to {high:.3f}")
    return table


def interval(task: Task | type[Task], exact: list[Tensor], found: list[Tensor]) -> tuple[float, float, float]:
    """The figure, the mean over seeds, and the 2.5 % and 97.5 % quantiles of 1,000 bootstrap draws of cases."""
    g = torch.Generator().manual_seed(0)

    def mean(draw: bool) -> float:
        total = 0.0
        for e, f in zip(exact, found, strict=True):
            chosen = torch.randint(0, len(e), (len(e),), generator=g) if draw else torch.arange(len(e))
            total += task.loss(e[chosen], f[chosen])
        return total / len(exact)

    draws = torch.tensor([mean(draw=True) for _ in range(1000)])
    return mean(draw=False), *draws.quantile(torch.tensor([0.025, 0.975])).tolist()


@contextmanager
def put_into(task: Task, calibration: effc.Calibration, forms: Mapping[str, Form]) -> Iterator[None]:
    """Meanwhile the model has these weights, and activations and outputs are as their forms have them."""
    kept = {name: task.model.get_parameter(name).data for name in forms}
    hooks = []
    for name, form in forms.items():
        module, parameter = task.model.get_submodule(name.rpartition(".")[0]), task.model.get_parameter(name)
        weight = form.dense()
        if isinstance(form, QuantizedWeight) and form.scheme.activations != "float":
            weight = form.stored()
            hooks.append(module.register_forward_pre_hook(_rounding(form, Inputs.of(calibration.sites[name], name))))
        if isinstance(form, Factors | FilterChain) and form.shift is not None:
            hooks.append(module.register_forward_hook(_shifting(form.shift)))
        parameter.data = weight.reshape(parameter.shape)
    yield
    for hook in hooks:
        hook.remove()
    for name, values in kept.items():
        task.model.get_parameter(name).data = values


def together(task: Task, calibration: effc.Calibration) -> list[list[str]]:
    """The task's weights, those that meet the same activations side by side."""
    found: dict[int, list[str]] = {}
    for name in task.weights():
        found.setdefault(id(calibration.sites[name].sample), []).append(name)
    return list(found.values())


def main(documentation: str | None, rows: Sequence[Row], headings: Sequence[str], tasks: Sequence[str]) -> None:
    """The command line of a tool with these rows; ``tasks``: those that run where nothing is said."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(tasks))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", default="", help="a regular expression: only rows whose name it finds")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = [row for row in rows if re.search(args.rows, row.name)]
    started = time.perf_counter()
    tables = [measure(TASKS[name], args.seeds, chosen, headings) for name in args.tasks]
    for table in tables:
        Console(width=160).print(table)
    print(f"{len(chosen)} rows, {args.seeds} seeds, {time.perf_counter() - started:.0f} s")


def _rounding(weight: QuantizedWeight, inputs: Inputs) -> Any:
    """A hook that divides activations by the smoothing and rounds them."""
    factors = weight.factors(inputs.channels)
    smoothed = inputs.over(factors)

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dim = 1 if isinstance(module, nn.Conv2d) else -1
        rows = held(args[0].movedim(dim, -1) / factors, weight.scheme, smoothed)
        return (rows.movedim(-1, dim), *args[1:])

    return hook


def _shifting(shift: Tensor) -> Any:
    """A hook that adds to the output's channels."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        dim = 1 if isinstance(module, nn.Conv2d) else -1
        return (output.movedim(dim, -1) + shift).movedim(-1, dim)

    return hook
