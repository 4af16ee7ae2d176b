"""``effc costmodel collect``: measure kernels on this machine, for a cost model of one's own."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from effc.cli import target
from effc.cli.command import Command
from effc.compiler.ir.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from effc.collecting.assignments import Assignment
    from effc.collecting.collector import Outcome

    #: Is told what begins.
    Watch = Callable[[str, Outcome], None]


def _add_arguments(collect: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    collect.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where trace files go; continues what was begun there"
    )
    collect.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="TARGET",
        help=f"measure the kernels of this model too: {target.HELP}",
    )
    collect.add_argument(
        "--shapes", type=int, metavar="N", help="how many built-in layers to measure (default: 200; with --model: 0)"
    )
    collect.add_argument("--families", metavar="A,B", help="only these families of built-in layers (default: all)")
    collect.add_argument(
        "--schedules", type=int, default=8, metavar="N", help="schedules of one kernel at most (default: 8)"
    )
    collect.add_argument("--threads", metavar="A,B", help=f"numbers of threads to measure with (default: {cores})")
    collect.add_argument(
        "--budget", type=float, metavar="MINUTES", help="stop after so many minutes (default: when all is measured)"
    )
    collect.add_argument(
        "--scheduler", metavar="ADDRESS", help="spread over the workers of a Dask scheduler (default: this machine)"
    )
    collect.add_argument(
        "--isa",
        choices=("avx512", "avx2", "x86-64"),
        help="measure the code that a CPU with these instructions runs (default: all of this CPU)",
    )
    collect.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: what triton makes of products under many tilings, and how long they take where there is a GPU (default: cpu)",
    )
    collect.add_argument(
        "--gpu",
        metavar="sm_90",
        help="with --device cuda: compile for such a GPU, and time nothing (default: this machine's)",
    )
    collect.add_argument("--seed", type=int, default=0, help="of the random shapes and schedules (default: 0)")


def _collect(args: argparse.Namespace) -> int:
    if args.shapes is None:
        args.shapes = 0 if args.model else 200
    if args.shapes < 0 or args.schedules < 1 or (args.budget is not None and not args.budget > 0):
        raise OptionError("--shapes must not be negative, --schedules at least 1, and --budget positive")
    if not args.shapes and not args.model:
        raise OptionError("there is nothing to collect: give --model, or --shapes above 0")
    if args.out.exists() and not args.out.is_dir():
        raise OptionError(f"--out {args.out} is no folder")
    if args.isa is not None and args.scheduler is not None:
        raise OptionError("--isa is for this machine: with --scheduler, start the workers with EFFC_CPU set")
    if args.gpu is not None and args.device == "cpu":
        raise OptionError("--gpu is for GPU kernels: give --device cuda too")
    return _on_gpu(args) if args.device == "cuda" else _on_cpu(args)


def _on_cpu(args: argparse.Namespace) -> int:
    threads = _threads(args.threads)
    from effc.collecting.cluster import spread_out
    from effc.collecting.collector import Request, collect
    from effc.collecting.host import HostBench
    from effc.collecting.shapes import FAMILIES
    from effc.compiler.codegen.cpu.target import CHOICE, Target
    from effc.costmodel.parquet import arrow

    if args.isa is not None:
        os.environ[CHOICE] = args.isa  # toolchain processes inherit it
        Target.host.cache_clear()
        Target.host()  # what this CPU has not is an error now

    arrow()  # without pyarrow, nothing is worth measuring
    assignments = _assignments(args, tuple(FAMILIES))
    args.out.mkdir(parents=True, exist_ok=True)
    request = Request(args.out, threads, args.schedules, args.seed, _seconds(args))

    def collected(watch: Watch) -> Outcome:
        if args.scheduler is not None:
            return spread_out(args.scheduler, assignments, request, watch)
        return collect((a.subject() for a in assignments), request, HostBench(request), watch)

    return _finished(args, len(assignments), collected, "measuring the machine")


def _on_gpu(args: argparse.Namespace) -> int:
    for name in ("threads", "isa", "scheduler"):
        if getattr(args, name) is not None:
            raise OptionError(f"--{name} is for CPUs: leave it out with --device cuda")
    from effc.cli.costmodel_gpu import request_of
    from effc.collecting.gpu import PRODUCTS, collect
    from effc.compiler.toolchain import toolchain
    from effc.costmodel.parquet import arrow

    arrow()  # without pyarrow, nothing is worth compiling
    request = request_of(args, _seconds(args))
    assignments = _assignments(args, PRODUCTS)
    args.out.mkdir(parents=True, exist_ok=True)
    return _finished(
        args,
        len(assignments),
        lambda watch: collect((a.subject() for a in assignments), request, toolchain(), watch),
        "starting triton",
    )


def _seconds(args: argparse.Namespace) -> float:
    return float("inf") if args.budget is None else 60 * args.budget


def _finished(args: argparse.Namespace, subjects: int, collected: Callable[[Watch], Outcome], begins: str) -> int:
    """Collect, and say what happened; the exit status."""
    try:
        outcome = _watched(collected, subjects, _seconds(args), begins)
    except KeyboardInterrupt:
        print(f"interrupted: what was measured is in {args.out}, and the same command goes on from there")
        return 130
    print(summary(outcome, args.out))
    return 0 if outcome.records or outcome.known or not outcome.subjects else 1


def _threads(text: str | None) -> tuple[int, ...]:
    cores = len(os.sched_getaffinity(0))
    try:
        found = tuple(dict.fromkeys(int(t) for t in text.split(","))) if text else (cores,)
    except ValueError:
        raise OptionError(f"--threads {text}: write numbers, as 1,{cores}") from None
    if not all(1 <= t <= cores for t in found):
        raise OptionError(f"--threads must be between 1 and {cores}, the cores that this process may use")
    return found


def _assignments(args: argparse.Namespace, usual: tuple[str, ...]) -> list[Assignment]:
    """``usual``: families of the spread where none are named."""
    from effc.collecting.assignments import Assignment
    from effc.collecting.shapes import FAMILIES

    families = usual if args.families is None else tuple(args.families.split(","))
    for name in families:
        if name not in FAMILIES:
            raise OptionError(f"unknown family '{name}': there are {', '.join(FAMILIES)}")
    models = [Assignment(model=name) for name in args.model]
    for model in models:
        model.subject()  # a wrong name is an error now, not after an hour
    return [*models, *(Assignment("", families, args.seed, index) for index in range(args.shapes))]


def _watched(collected: Callable[[Watch], Outcome], subjects: int, seconds: float, begins: str) -> Outcome:
    """Collect with a bar: by subjects, or by minutes where a budget will end it sooner. ``begins``: what it does first."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(begins, total=1.0)

        def watch(text: str, outcome: Outcome) -> None:
            spent = (time.monotonic() - began) / seconds
            progress.update(
                task,
                completed=max((outcome.reached - 1) / subjects, spent),
                description=f"{outcome.records} records, {outcome.contaminated} windows rejected; {text}",
            )

        outcome = collected(watch)
        progress.update(task, completed=1.0, description=f"{outcome.records} records")
    return outcome


def summary(outcome: Outcome, folder: Path) -> str:
    """What happened, for people."""
    share = outcome.contaminated / outcome.windows if outcome.windows else 0.0
    rejected = f"{share:.1%} of {outcome.windows} windows rejected, because the machine did something else"
    lines = [
        f"{outcome.records} records of {outcome.subjects} subjects in {folder}; {outcome.known} were there already",
        *([rejected] if outcome.windows else []),
        *(f"not measured, {count} times: {reason}" for reason, count in outcome.lost.most_common()),
        *(f"skipped: {text}" for text in outcome.unreadable),
    ]
    return "\n".join(lines)


COMMAND = Command(
    "collect",
    "compile layers and models, run each kernel under many schedules, and write what they took; goes on where it was interrupted",
    _add_arguments,
    _collect,
)
