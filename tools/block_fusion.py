"""What block fusion gains: every kind of block, or whole models, compiled with it and without it, in turn in one process.

    python tools/block_fusion.py                                              # all kinds, resolutions and widths
    python tools/block_fusion.py --kinds inverted,convnext --sides 14,56 --widths 32,96
    python tools/block_fusion.py --models mobilenet_v2,efficientnet_b0 --openvino --memory --plots DIR

Of a block: medians over the rounds of what its kernels take, without Python around them; how many times faster the fused one is, with the
20th and 80th percentile; kernels; megabytes that kernels move, each operand once; scratch memory of a thread in KiB; the ceiling
(`effc.waterline`: at least so long kernel by kernel, over as one kernel, on the machine as it was measured just before); and the share of
the ceiling's gain that is reached, where the ceiling is 1.2 or more. Images are channels-last, with a batch of one. Of a model: whole calls
as a user makes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from activation_memory import eager_peak
from fusion_builds import Compiled, builds, compiled, in_turn

from effc.bench.models import BLOCKS, Case, build, build_block
from effc.bench.spread import Spread
from effc.bench.systems import DTYPES, Setting
from effc.bench.systems.openvino import OpenVino
from effc.bench.systems.system import cast
from effc.compiler.capture.graph import Build
from effc.roof import measured_roof
from effc.waterline import Waterline, analyze

#: Seconds of calls that a sample of a block, and of a model, is the mean of; and of rest before a model's, in which other threads stop.
_BLOCK, _MODEL, _REST = 0.004, 0.1, 0.03
#: Width times side of the blocks that networks have.
_SENSIBLE = (500, 11000)
#: A ceiling from which on fusing is worth its while.
_WORTH = 1.2


def moved(made: Compiled) -> float:
    """Megabytes."""
    return sum(t.read + t.written for layer in made.layers for t in layer.touches) / 1e6


def scratch(made: Compiled) -> float:
    """KiB a thread of the kernel that takes most."""
    return max(made.scratch, default=0) / 1024


def ratio_of(apart: list[float], fused: list[float]) -> tuple[float, str]:
    """How many times faster, and the same as text."""
    ratio = Spread.of_ratios(apart, fused)
    return ratio.median, f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def block_row(case: Case, dtype: str, with_fusion: Build, without: Build, threads: int, rounds: int) -> str:
    module, inputs = cast(case.module, case.inputs(0, 0), DTYPES[dtype])
    torch._dynamo.reset()  # or the blocks of other rows count as recompilations of this one
    apart, fused = (compiled(module, inputs, builder) for builder in (without, with_fusion))
    water = analyze(apart.layers, measured_roof(threads), [(0, len(apart.layers))])
    times = in_turn([apart.native(), fused.native()], rounds, _BLOCK)
    gained, ratio = ratio_of(*times)
    share = f"{(gained - 1) / (water.ceiling - 1):.0%}" if water.ceiling >= _WORTH else ""
    microseconds = " | ".join(f"{1e6 * Spread.of(t).median:.1f}" for t in times)
    return (
        f"{microseconds} | {ratio} | {len(apart.layers)} → {len(fused.layers)} | {moved(apart):.2f} → {moved(fused):.2f} | "
        f"{scratch(fused):.0f} | {water.ceiling:.2f} | {share}"
    )


def blocks(args: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """Kind, side and width of each row."""
    low, high = _SENSIBLE
    for name in args.kinds.split(","):
        for side in args.sides:
            for width in args.widths:
                if low <= side * width <= high and width % BLOCKS[name].multiple == 0:
                    yield name, side, width


def block_table(args: argparse.Namespace, with_fusion: Build, without: Build) -> None:
    print(
        "| block | side | width | apart, µs | fused, µs | times faster | kernels | MB moved | scratch, KiB | ceiling | share |"
    )
    print("|---" * 11 + "|")
    for name, side, width in blocks(args):
        row = block_row(build_block(name, width, side), args.dtype, with_fusion, without, args.threads, args.rounds)
        print(f"| {name} | {side} | {width} | {row} |", flush=True)


def model_table(args: argparse.Namespace, with_fusion: Build, without: Build) -> None:
    names = ["apart", "fused", *(["openvino"] if args.openvino else [])]
    ratios = " | ".join(f"over {n}" for n in names if n != "fused")
    memory = " activations, MiB: eager | apart | fused |" if args.memory else ""
    print(f"| model | GFLOP | {' | '.join(f'{n}, ms' for n in names)} | {ratios} | kernels | ceiling |{memory}")
    print("|---" * (4 + 2 * len(names) - 1 + (3 if args.memory else 0)) + "|")
    for name in args.models.split(","):
        print(f"| {name} | {model_row(args, name, with_fusion, without)} |", flush=True)


def model_row(args: argparse.Namespace, name: str, with_fusion: Build, without: Build) -> str:
    case = build(name, small=False)
    module, inputs = cast(case.module, case.inputs(0, 0), DTYPES[args.dtype])
    torch._dynamo.reset()
    apart, fused = (compiled(module, inputs, builder) for builder in (without, with_fusion))
    water = analyze(apart.layers, measured_roof(args.threads))
    calls: list[Callable[[], Any]] = [partial(apart.call, *inputs), partial(fused.call, *inputs)]
    with torch.no_grad():
        if args.openvino:
            calls.append(OpenVino().prepare(module, inputs, Setting(args.threads, args.dtype)))
        found = in_turn(calls, args.rounds, _MODEL, _REST)
    times = " | ".join(f"{1e3 * Spread.of(t).median:.2f}" for t in found)
    ratios = " | ".join(ratio_of(t, found[1])[1] for i, t in enumerate(found) if i != 1)
    flops = sum(layer.flops for layer in apart.layers) / 1e9
    cells = [f"{flops:.2f} | {times} | {ratios} | {len(apart.layers)} → {len(fused.layers)} | {water.ceiling:.2f}"]
    if args.memory:
        ours = (made.activations(args.threads) for made in (apart, fused))
        cells += [f"{n / 2**20:.2f}" for n in (eager_peak(module, inputs), *ours)]
    if args.plots is not None:
        plot(args.plots / f"{name}.svg", water, name)
    return " | ".join(cells)


def plot(path: Path, water: Waterline, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    water.to_svg(path, f"{name}, block by block")


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(BLOCKS), help="of blocks, by commas")
    parser.add_argument("--sides", type=numbers, default=[7, 14, 28, 56, 112])
    parser.add_argument("--widths", type=numbers, default=[16, 32, 64, 96, 192, 384, 768])
    parser.add_argument("--models", help="by commas, names of effc bench: whole models instead of blocks")
    parser.add_argument("--openvino", action="store_true", help="of models: beside OpenVINO")
    parser.add_argument("--memory", action="store_true", help="of models: activations, with scratch memory and results")
    parser.add_argument("--plots", type=Path, help="of models: a folder for their waterlines")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with builds() as (with_fusion, without):
        (model_table if args.models else block_table)(args, with_fusion, without)


if __name__ == "__main__":
    main()
