"""``effc bisect``: the smallest part of a model that effc gets wrong, as a file for ``effc-opt``."""

from __future__ import annotations

import argparse
from pathlib import Path

from effc.cli import target
from effc.cli.command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    target.add_arguments(parser)
    parser.add_argument("--train", action="store_true", help="a step of training: look at the backward graph too")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reproducer.mlir"),
        help="where to write the reproducer (default: reproducer.mlir)",
    )


def _run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from effc.bisect import bisect
    from effc.compiler.ir.options import Options

    options = Options.of(target.options(args.option))
    model, inputs = target.load(args.target)
    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed} tried"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("looking for the smallest failing region", total=None)
        culprit = bisect(model, inputs, options, lambda: progress.advance(task), args.train)
    if culprit is None:
        print("every region gives ATen's results within its bound: nothing to bisect")
        return 0
    args.out.write_text(culprit.reproducer())
    print(f"{culprit.nodes} of {culprit.of} ops fail: {culprit.failure.reason}")
    print(f"written to {args.out}; its first line says how to run it")
    return 1


COMMAND = Command("bisect", "find the smallest part of a model that effc gets wrong", _add_arguments, _run)
