"""What quantization costs in accuracy: formats and algorithms on pretrained models, over seeds, with confidence intervals.

    make models && apt-get install dataset-fashion-mnist     # once
    python tools/quantized_accuracy.py --tasks language embeddings images --seeds 3 --threads 1
    python tools/quantized_accuracy.py --tasks language --rows 'int4' --seeds 1

The models run in eager with dequantized weights; where a format has int8 activations, those that meet a quantized weight are rounded.
A row's figure is the mean over the seeds, with its 95 % interval by the bootstrap over the cases of all seeds (windows, pairs, images).
Lower is better; `accuracy_tasks.py` says what the tasks are.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accuracy_tasks import TASKS, Task
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import effc
from effc.compiler.compress.activations import held
from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.quantized import QuantizedWeight
from effc.compiler.compress.recipe import quantize
from effc.compiler.ir.quantization import Recipe, Scheme

#: Of the schemes below; a task has its own, in proportion.
_GROUP = 64
_NEAREST, _CLIPPED = Recipe(), Recipe(clipping="mse")
_AWQ, _GPTQ = Recipe("awq", clipping="mse"), Recipe(rounding="gptq", clipping="mse")
_BOTH, _SMOOTH = Recipe("awq", "gptq", "mse"), Recipe("smoothquant")
_INT8, _INT4, _NF4 = Scheme(), Scheme("int4", 64, symmetric=False), Scheme("nf4", 64)
_W8A8, _STATIC = Scheme(activations="token"), Scheme(activations="tensor")
_W4A8, _INT2 = Scheme("int4", 64, activations="token"), Scheme("int2", 64, symmetric=False)
_DUAL = Scheme("int4", 64, activations="token", scales="dual")


@dataclass(frozen=True)
class Row:
    format: str
    algorithm: str
    scheme: Scheme
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.format}, {self.algorithm}"


ROWS = (
    Row("int8 a channel", "nearest", _INT8, _NEAREST),
    Row("int8 a channel", "GPTQ", _INT8, Recipe(rounding="gptq")),
    Row("int4", "nearest", _INT4, _NEAREST),
    Row("int4", "nearest, percentile", _INT4, Recipe(clipping="percentile")),
    Row("int4", "nearest, least error", _INT4, _CLIPPED),
    Row("int4", "AWQ", _INT4, _AWQ),
    Row("int4", "GPTQ", _INT4, _GPTQ),
    Row("int4", "AWQ and GPTQ", _INT4, _BOTH),
    Row("int4, half and coarser", "FineQuant", Scheme("int4", 32, symmetric=False), Recipe(grouping="finequant")),
    Row("nf4", "nearest", _NF4, _NEAREST),
    Row("nf4, double", "nearest", Scheme("nf4", 64, scales="double"), _NEAREST),
    Row("nf4, double", "AWQ and GPTQ", Scheme("nf4", 64, scales="double"), _BOTH),
    Row("int2", "AWQ and GPTQ", _INT2, _BOTH),
    Row("W8A8, by token", "nearest", _W8A8, _NEAREST),
    Row("W8A8, by token", "SmoothQuant+", _W8A8, _SMOOTH),
    Row("W8A8, by token", "SmoothQuant+ and GPTQ", _W8A8, Recipe("smoothquant", "gptq", "mse")),
    Row("W8A8, by tensor", "nearest", _STATIC, _NEAREST),
    Row("W8A8, by tensor", "SmoothQuant+", _STATIC, _SMOOTH),
    Row("W4A8, by token", "nearest", _W4A8, _NEAREST),
    Row("W4A8, by token", "SmoothQuant+ and GPTQ", _W4A8, Recipe("smoothquant", "gptq", "mse")),
    Row("W4A8, dual, by token", "nearest", _DUAL, _NEAREST),
    Row("W4A8, dual, by token", "nearest, least error", _DUAL, _CLIPPED),
    Row("W4A8, dual, by token", "SmoothQuant+ and GPTQ", _DUAL, Recipe("smoothquant", "gptq", "mse")),
)


def quantized(task: Task, calibration: effc.Calibration, row: Row) -> dict[str, QuantizedWeight]:
    """By parameter name; those that meet the same activations are quantized together."""
    scheme = replace(row.scheme, group=row.scheme.group * task.group // _GROUP)
    together: dict[int, list[str]] = {}
    for name in task.weights():
        together.setdefault(id(calibration.sites[name].sample), []).append(name)
    found: dict[str, QuantizedWeight] = {}
    for names in together.values():
        weights = {name: task.model.get_parameter(name).detach() for name in names}
        found |= quantize(weights, scheme, row.recipe, calibration.sites[names[0]])
    return found


@contextmanager
def put_into(task: Task, calibration: effc.Calibration, weights: dict[str, QuantizedWeight]) -> Iterator[None]:
    """Meanwhile the model has these weights, and its activations are held as their scheme says."""
    kept = {name: task.model.get_parameter(name).detach().clone() for name in weights}
    hooks = []
    for name, weight in weights.items():
        module, parameter = task.model.get_submodule(name.rpartition(".")[0]), task.model.get_parameter(name)
        exact = weight.scheme.activations == "float"
        parameter.data = (weight.dense() if exact else weight.stored()).reshape(parameter.shape)
        if not exact:
            inputs = Inputs.of(calibration.sites[name], name)
            hooks.append(module.register_forward_pre_hook(_rounding(weight, inputs)))
    yield
    for hook in hooks:
        hook.remove()
    for name, values in kept.items():
        task.model.get_parameter(name).data = values


def _rounding(weight: QuantizedWeight, inputs: Inputs) -> Any:
    """A hook that divides activations by the smoothing and rounds them."""
    channels = inputs.channels
    smoothing = torch.ones(channels) if weight.smoothing is None else weight.smoothing.reshape(channels, -1)[:, 0]
    smoothed = inputs.over(smoothing)

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dim = 1 if isinstance(module, nn.Conv2d) else -1
        rows = held(args[0].movedim(dim, -1) / smoothing, weight.scheme, smoothed)
        return (rows.movedim(-1, dim), *args[1:])

    return hook


def bits(weights: dict[str, QuantizedWeight]) -> float:
    """Of a weight, on average: codes, scales, zero points; smoothing not, which the layer before may take in."""
    total = sum(w.codes.numel() * w.scheme.bits for w in weights.values())
    for w in weights.values():
        total += _scale_bits(w) + (0 if w.zeros is None else w.scheme.bits * w.zeros.numel())
    return total / sum(w.codes.numel() for w in weights.values())


def _scale_bits(weight: QuantizedWeight) -> int:
    if weight.scale_codes is not None:
        return 8 * weight.scale_codes.codes.numel() + 32 * (weight.scale_codes.block_scales.numel() + 1)
    if weight.dual is not None:
        return 8 * weight.dual.groups.numel() + 32 * weight.dual.channels.numel()
    return 32 * weight.scales.numel()


def interval(task: Task, exact: list[Tensor], found: list[Tensor]) -> tuple[float, float, float]:
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


def measure(kind: Callable[[int], Task], seeds: int, rows: list[Row]) -> Table:
    exact: list[Tensor] = []
    found: dict[str, list[Tensor]] = {row.name: [] for row in rows}
    size: dict[str, float] = {}
    for seed in range(seeds):
        task = kind(seed)
        calibration = effc.calibrate(task.model, task.calibration)
        exact.append(task.cases())
        for row in rows:
            started = time.perf_counter()
            weights = quantized(task, calibration, row)
            took = time.perf_counter() - started
            with put_into(task, calibration, weights):
                found[row.name].append(task.cases())
            size[row.name] = bits(weights)
            figure = task.loss(exact[-1], found[row.name][-1])
            print(
                f"seed {seed}  {row.name:44} {figure:9.3f}  {took:5.1f} + {time.perf_counter() - started - took:.1f} s",
                flush=True,
            )
    table = Table(
        "format",
        "algorithm",
        "bits",
        task.figure,
        "95 % interval",
        title=f"{type(task).__name__}, groups of {task.group}",
    )
    for row in rows:
        mean, low, high = interval(task, exact, found[row.name])
        table.add_row(row.format, row.algorithm, f"{size[row.name]:.2f}", f"{mean:.3f}", f"{low:.3f} to {high:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", default="", help="a regular expression: only rows whose name it finds")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for row in ROWS if re.search(args.rows, row.name)]
    started = time.perf_counter()
    tables = [measure(TASKS[name], args.seeds, rows) for name in args.tasks]
    for table in tables:
        Console().print(table)
    print(f"{len(rows)} rows, {args.seeds} seeds, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
