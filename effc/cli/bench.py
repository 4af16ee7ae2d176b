"""``effc bench``: models, or kernels, timed in turn on eager PyTorch, its other compilers and effc."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from effc.cli.command import Command
from effc.compiler.ir.errors import OptionError

if TYPE_CHECKING:
    from effc.bench.measure import Plan
    from effc.bench.result import Report
    from effc.bench.runner import Subject

#: Columns of a table that is not printed to a terminal.
WIDTH = 160


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--kernels", action="store_true", help="time single kernels over a sweep of shapes, not models")
    parser.add_argument(
        "--models", metavar="NAMES", help="only these models, by commas; with --kernels: kernels or families"
    )
    parser.add_argument(
        "--systems", metavar="NAMES", help="only these systems, by commas (default: all; kernels: eager,effc)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where models run (default: cpu)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="of weights and activations (default: float32)",
    )
    parser.add_argument(
        "--threads", type=int, default=cores, help=f"threads of every system (default: all cores, {cores})"
    )
    parser.add_argument("--rounds", type=int, help="timed rounds (default: 20; kernels: 5)")
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="seconds that a system's first call may take (default: 600)"
    )
    parser.add_argument("--small", action="store_true", help="small models, as in the tests, to try it out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample and figure here")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw the speed-ups here")


def _run(args: argparse.Namespace) -> int:
    cores = len(os.sched_getaffinity(0))
    if not 1 <= args.threads <= cores:
        raise OptionError(f"--threads must be between 1 and {cores}, the cores that this process may use")
    if args.rounds is None:
        args.rounds = 5 if args.kernels else 20
    if args.rounds < 2 or args.timeout <= 0:
        raise OptionError("--rounds must be at least 2, and --timeout positive")
    for file in (args.json, args.plot):
        if file is not None and not file.absolute().parent.is_dir():
            raise OptionError(f"there is no folder {file.absolute().parent}")
    if args.plot is not None and args.plot.suffix != ".svg":
        raise OptionError(f"--plot writes SVG: {args.plot} does not end in .svg")
    if args.device == "cuda":
        from effc.bench.places import check_cuda

        check_cuda()
        if args.dtype == "int8":
            raise OptionError("--dtype int8 is for CPUs: what quantizes the models here is made for them")
    subjects = _subjects(args)
    plan = _plan(args)

    from rich.console import Console

    from effc.bench import plot, table
    from effc.bench.systems import OURS

    report = _measure(plan, subjects)
    # Outside a terminal there is no width to fit: a cell that is cut off there is lost.
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table.kernels(report) if args.kernels else table.models(report))
    if args.json is not None:
        report.write(args.json)
    if args.plot is not None:
        plot.write(report, args.plot)
    ours = [o for m in report.measurements for o in m.outcomes if o.system == OURS]
    return int(any(o.status == "failed" for o in ours))


def _subjects(args: argparse.Namespace) -> list[Subject]:
    from effc.bench import kernels, models
    from effc.bench.runner import Subject

    if not args.kernels:
        known = [*models.ENTRIES, *models.SIZES]
        names = _chosen(args.models, known, "model") if args.models else list(models.MEASURED)
        return [Subject("model", name, args.small) for name in names]
    if args.small:
        raise OptionError("--small is of models, not of --kernels")
    wanted = _chosen(args.models, [*kernels.KERNELS, *kernels.FAMILIES], "kernel") if args.models else kernels.FAMILIES
    chosen = [k for n, k in kernels.KERNELS.items() if n in wanted or k.family in wanted]
    if args.dtype == "int8":
        chosen = [k for k in chosen if not k.compressed]
        if not chosen:
            raise OptionError("these kernels are compressed as they are: leave --dtype int8 out")
    return [Subject("kernel", k.name) for k in chosen]


def _plan(args: argparse.Namespace) -> Plan:
    from effc.bench.measure import Plan
    from effc.bench.systems import ON, OURS, Setting

    systems = ["eager", OURS] if args.kernels else list(ON[args.device])
    if args.systems:
        systems = _chosen(args.systems, ON[args.device], "system")
    return Plan(
        tuple(systems),
        Setting(args.threads, args.dtype, device=args.device),
        args.rounds,
        args.timeout,
        fresh=not args.kernels,
    )


def _chosen(text: str, known: Iterable[str], what: str) -> list[str]:
    """The names in ``text``, each once; OptionError, with the nearest, where one is not ``known``."""
    names, names_known = list(dict.fromkeys(filter(None, text.split(",")))), list(known)
    for name in names:
        if name not in names_known:
            near = difflib.get_close_matches(name, names_known, 1)
            meant = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names_known)}"
            raise OptionError(f"unknown {what} '{name}': {meant}")
    if not names:
        raise OptionError(f"no {what} is named in '{text}'")
    return names


def _measure(plan: Plan, subjects: list[Subject]) -> Report:
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from effc.bench.host import host
    from effc.bench.load import observe
    from effc.bench.measure import Session, steps
    from effc.bench.result import Report
    from effc.compiler.codegen.cpu.target import Target

    target = Target.host()
    started, load = datetime.now(UTC).isoformat(timespec="seconds"), observe()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=steps(plan, subjects))
        with Session(plan, lambda text: progress.update(task, advance=1, description=text)) as session:
            measurements = tuple(session.measure(subject) for subject in subjects)
    settings = {
        "threads": plan.setting.threads,
        "dtype": plan.setting.dtype,
        "device": plan.setting.device,
        "rounds": plan.rounds,
        "systems": plan.systems,
        "subjects": [asdict(s) for s in subjects],
    }
    return Report(
        started, host(target.key, target.vector_bytes, plan.setting.device), settings, load, observe(), measurements
    )


COMMAND = Command(
    "bench", "time models or kernels on effc, eager PyTorch and its other compilers, in turn", _add_arguments, _run
)
