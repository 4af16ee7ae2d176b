"""What block fusion gains: every kind of block, or whole models, compiled with it and without it, in turn in one process.

    python tools/block_fusion.py --kept build/blocks.json                     # all kinds, resolutions and widths; goes on where it stopped
    python tools/block_fusion.py --kinds inverted,convnext --sides 14,56 --widths 32,96
    python tools/block_fusion.py --ceilings --roof 236,200,80,38              # nothing is timed
    python tools/block_fusion.py --models mobilenet_v2,resnet50 --ceilings --roof 236,200,80,38
    python tools/block_fusion.py --models mobilenet_v2,efficientnet_b0 --openvino --memory --plots DIR

Of a block: medians over the rounds of what its kernels take, without Python around them; how many times faster the fused one is, with the
20th and 80th percentile; kernels; megabytes that kernels move, each operand once; scratch memory of a thread in KiB; the ceiling
(`effc.reporting`: at least so long kernel by kernel, over as one kernel, on the machine as it was measured just before); and the share of
the ceiling's gain that is reached, where the ceiling is 1.2 or more. As many kernels fused as apart: none was chosen to be fused. Images
are channels-last, with a batch of one. Of a model: whole calls as a user makes them, and how many times faster the fused one is than
each other. Below the table of blocks stands what it says (`fusion_summary`). ``--kept`` keeps rows of blocks in a file, so that a run that
was interrupted, or that ``--minutes`` ended, is gone on with; rows of other sources
of effc are measured again. Below the models stands what each gains over the first, by itself and by fusing: of ConvFirst over ConvNeXt,
which do as many operations, the model's share and the kernels'. Rows are measured one after the other.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from activation_memory import eager_peak
from fusion_builds import Compiled, builds, compiled, in_turn
from fusion_summary import WORTH, Measured, summary
from resumed import Kept
from torch import nn

from effc.bench.models import BLOCKS, build, build_block
from effc.bench.spread import Spread
from effc.bench.systems import DTYPES, Setting
from effc.bench.systems.openvino import OpenVino
from effc.bench.systems.system import cast
from effc.compiler.build import toolchain_key
from effc.compiler.capture.devices import Build
from effc.reporting.bounds import Roof
from effc.reporting.waterline import Waterline, analyze
from effc.roof import host_roof, measured_roof

#: Seconds of calls that a sample of a block, and of a model, is the mean of; and of rest before a model's, in which other threads stop.
_BLOCK, _MODEL, _REST = 0.004, 0.1, 0.03
#: Width times side of the blocks that networks have.
_SENSIBLE = (500, 11000)


@dataclass(frozen=True)
class Comparison:
    """``fused``, ``apart``: how to build with block fusion and without; the rest as asked for."""

    args: argparse.Namespace
    fused: Build
    apart: Build

    def compiled(self, builder: Build, module: nn.Module, inputs: tuple[Any, ...]) -> Compiled:
        torch._dynamo.reset()  # or what came before counts as compilations of the same function
        return compiled(module, inputs, builder)

    def roof(self) -> Roof:
        """The machine as it is now, or with the speeds that were given."""
        if self.args.roof is None:
            return measured_roof(self.args.threads)
        peak, *speeds = (1e9 * speed for speed in self.args.roof)
        levels = host_roof(self.args.threads).levels
        if len(levels) != len(speeds):
            raise SystemExit(
                f"--roof: this machine has {len(levels)} levels: {', '.join(level.name for level in levels)}"
            )
        return Roof(peak, tuple(replace(level, bandwidth=s) for level, s in zip(levels, speeds, strict=True)))

    def of(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
        """Both in the dtype."""
        return cast(module, inputs, DTYPES[self.args.dtype])


# -- blocks -----------------------------------------------------------------------------------------------------------
def block_table(comparison: Comparison) -> None:
    args = comparison.args
    row, head = (ceiling_row, _CEILINGS) if args.ceilings else (block_row, _BLOCKS)
    kept, end = Kept(args.kept), time.monotonic() + 60 * args.minutes
    print(_row(("block", "side", "width", *head)))
    print("|---" * (3 + len(head)) + "|")
    found: list[Measured] = []
    for name, side, width in blocks(args):
        key = f"{'ceiling of ' * args.ceilings}{name} {side} {width}, {args.dtype}, {args.threads} threads, {toolchain_key()}"
        if key not in kept:
            if time.monotonic() > end:
                print("\nThe time is over: the same command goes on from here.")
                break
            case = build_block(name, width, side)
            kept[key] = [str(cell) for cell in row(comparison, *comparison.of(case.module, case.inputs(0, 0)))]
        print(_row((name, side, width, *kept[key])), flush=True)
        if not args.ceilings:
            found.append(_measured(f"{name} {side} {width}", dict(zip(head, kept[key], strict=True))))
    if found:
        print("", *summary(found), sep="\n")


def _measured(block: str, cells: Mapping[str, str]) -> Measured:
    """A row of the table."""
    before, after = cells["kernels"].split(" → ")
    return Measured(block, float(cells["times faster"].split()[0]), before != after, float(cells["ceiling"]))


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def blocks(args: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """Kind, side and width of each row."""
    low, high = _SENSIBLE
    for name in args.kinds.split(","):
        for side in args.sides:
            for width in args.widths:
                if low <= side * width <= high and width % BLOCKS[name].multiple == 0:
                    yield name, side, width


_CEILINGS = ("kernels", "MB moved", "at least apart, µs", "fused, µs", "ceiling")


def ceiling_row(comparison: Comparison, module: nn.Module, inputs: tuple[Any, ...]) -> list[str]:
    made = comparison.compiled(comparison.apart, module, inputs)
    water = analyze(made.layers, comparison.roof(), [(0, len(made.layers))])
    times = [f"{1e6 * t:.1f}" for t in (water.apart, water.fused)]
    return [str(len(made.layers)), f"{moved(made):.2f}", *times, f"{water.ceiling:.2f}"]


_BLOCKS = ("apart, µs", "fused, µs", "times faster", "kernels", "MB moved", "scratch, KiB", "ceiling", "share")


def block_row(comparison: Comparison, module: nn.Module, inputs: tuple[Any, ...]) -> list[str]:
    apart, fused = (comparison.compiled(b, module, inputs) for b in (comparison.apart, comparison.fused))
    water = analyze(apart.layers, comparison.roof(), [(0, len(apart.layers))])
    times = in_turn([apart.native(), fused.native()], comparison.args.rounds, _BLOCK)
    gained, ratio = ratio_of(*times)
    return [
        *(f"{1e6 * Spread.of(t).median:.1f}" for t in times),
        ratio,
        f"{len(apart.layers)} → {len(fused.layers)}",
        f"{moved(apart):.2f} → {moved(fused):.2f}",
        f"{max(fused.scratch) / 1024:.0f}",
        f"{water.ceiling:.2f}",
        f"{(gained - 1) / (water.ceiling - 1):.0%}" if water.ceiling >= WORTH else "",
    ]


def moved(made: Compiled) -> float:
    """Megabytes."""
    return sum(t.read + t.written for layer in made.layers for t in layer.touches) / 1e6


def ratio_of(apart: list[float], fused: list[float]) -> tuple[float, str]:
    """How many times faster, and the same as text."""
    ratio = Spread.of_ratios(apart, fused)
    return ratio.median, f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


# -- models -----------------------------------------------------------------------------------------------------------
#: By which share the operations of two models may differ that are compared with each other.
_ALIKE = 0.05


def model_table(comparison: Comparison) -> None:
    args = comparison.args
    if args.ceilings:
        model_ceilings(comparison)
        return
    names = ["apart", "fused", *(["openvino"] if args.openvino else [])]
    head = ["model", "GFLOP", *(f"{n}, ms" for n in names), *(f"over {n}" for n in names if n != "fused")]
    head += ["kernels", "ceiling", *(["activations, MiB: eager", "apart", "fused"] if args.memory else [])]
    print(f"| {' | '.join(head)} |")
    print("|---" * len(head) + "|")
    found: dict[str, tuple[float, float, float]] = {}
    for name in args.models.split(","):
        cells, times = model_row(comparison, name)
        found[name] = (float(cells[0]), *times)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    (first, (work, *start)), *others = found.items()
    for name, (operations, apart, fused) in others:
        if abs(operations / work - 1) > _ALIKE:
            continue
        print(
            f"\n{name} over {first}: {start[0] / apart:.2f} times as fast, both without fusion (the model); fusing gains "
            f"{apart / fused:.2f} (the kernels), on {first} {start[0] / start[1]:.2f}; together {start[0] / fused:.2f}."
        )


def model_ceilings(comparison: Comparison) -> None:
    """What fusing can gain of each model: its blocks with a shortcut, and any (`Waterline.limit`)."""
    print(_row(("model", "GFLOP", "kernels", "at least apart, ms", "blocks fused", "ceiling", "all as one", "ceiling")))
    print("|---" * 8 + "|")
    for name in comparison.args.models.split(","):
        case = build(name, small=False)
        layers = comparison.compiled(comparison.apart, *comparison.of(case.module, case.inputs(0, 0))).layers
        water = analyze(layers, comparison.roof())
        apart, fused, least = (f"{1e3 * t:.2f}" for t in (water.apart, water.fused, water.least))
        work = f"{sum(layer.flops for layer in layers) / 1e9:.2f}"
        cells = (name, work, len(layers), apart, fused, f"{water.ceiling:.2f}", least, f"{water.limit:.2f}")
        print(_row(cells), flush=True)


def model_row(comparison: Comparison, name: str) -> tuple[list[str], tuple[float, float]]:
    """The cells, and seconds apart and fused."""
    args, case = comparison.args, build(name, small=False)
    module, inputs = comparison.of(case.module, case.inputs(0, 0))
    apart, fused = (comparison.compiled(b, module, inputs) for b in (comparison.apart, comparison.fused))
    water = analyze(apart.layers, comparison.roof())
    calls: list[Callable[[], Any]] = [partial(apart.call, *inputs), partial(fused.call, *inputs)]
    with torch.no_grad():
        if args.openvino:  # it takes the float32 model, and computes in the dtype
            plain = build(name, small=False)
            calls.append(OpenVino().prepare(plain.module, plain.inputs(0, 0), Setting(args.threads, args.dtype)))
        times = in_turn(calls, args.rounds, _MODEL, _REST)
    cells = [f"{sum(layer.flops for layer in apart.layers) / 1e9:.2f}"]
    cells += [f"{1e3 * Spread.of(t).median:.2f}" for t in times]
    cells += [ratio_of(t, times[1])[1] for i, t in enumerate(times) if i != 1]
    cells += [f"{len(apart.layers)} → {len(fused.layers)}", f"{water.ceiling:.2f}"]
    if args.memory:
        ours = (made.activations(args.threads) for made in (apart, fused))
        cells += [f"{n / 2**20:.2f}" for n in (eager_peak(module, inputs), *ours)]
    if args.plots is not None:
        plot(args.plots / f"{name}.svg", water, name)
    return cells, (Spread.of(times[0]).median, Spread.of(times[1]).median)


def plot(path: Path, water: Waterline, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    water.to_svg(path, f"{name}, without block fusion")


def integers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def numbers(text: str) -> list[float]:
    return [float(n) for n in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(BLOCKS), help="of blocks, by commas")
    parser.add_argument("--sides", type=integers, default=[7, 14, 28, 56, 112])
    parser.add_argument("--widths", type=integers, default=[16, 32, 64, 96, 192, 384, 768])
    parser.add_argument("--ceilings", action="store_true", help="only what can be gained, nothing is timed")
    parser.add_argument("--kept", type=Path, help="of blocks: a file of rows: what it holds is not measured again")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of blocks: after which no row is begun")
    parser.add_argument("--models", help="by commas, names of effc bench: whole models instead of blocks")
    parser.add_argument("--openvino", action="store_true", help="of models: beside OpenVINO")
    parser.add_argument("--memory", action="store_true", help="of models: activations, with scratch memory and results")
    parser.add_argument("--plots", type=Path, help="of models: a folder for their waterlines")
    parser.add_argument(
        "--roof", type=numbers, help="GFLOP/s, then GB/s of each level of memory, in place of measured ones"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with builds() as (fused, apart):
        (model_table if args.models else block_table)(Comparison(args, fused, apart))


if __name__ == "__main__":
    main()
