"""``effc demo``: compiles a ResNet-50, runs it against eager PyTorch, and prints the report."""

from __future__ import annotations

import argparse
import time

from effc.cli.command import Command
from effc.cli.timing import Latency, race
from effc.compiler.ir.errors import OptionError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=1, help="images in a call (default: 1)")
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds (default: 30)")


def _run(args: argparse.Namespace) -> int:
    if args.batch < 1 or args.rounds < 2:
        raise OptionError("--batch must be at least 1, and --rounds at least 2")
    import torch
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    import effc
    from effc.bench.models.vision import resnet50

    console = Console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with torch.no_grad(), Progress(*columns, console=console) as progress:
        step = progress.add_task("building ResNet-50")
        case = resnet50(small=False, batch=args.batch)
        model, (images,) = case.module, case.inputs(0, 0)
        progress.update(step, total=1, completed=1)

        step = progress.add_task("eager, and in float64 for reference")
        eager = model(images)
        exact = model.double()(images.double())
        model.float()
        progress.update(step, total=1, completed=1)

        step = progress.add_task("effc.explain(model, images): compiling, and reporting on it")
        start = time.perf_counter()
        report = effc.explain(model, images)
        compiling = time.perf_counter() - start
        progress.update(step, total=1, completed=1)

        step = progress.add_task("torch.compile(model, backend='effc'), from the cache")
        compiled = torch.compile(model, backend="effc")
        start = time.perf_counter()
        ours = compiled(images)
        cached = time.perf_counter() - start
        progress.update(step, total=1, completed=1)

        step = progress.add_task(f"{args.rounds} rounds, in turn", total=args.rounds)
        samples: dict[str, list[float]] = {"eager": [], "effc": []}
        for seconds in race({"eager": lambda: model(images), "effc": lambda: compiled(images)}, args.rounds):
            for name, value in seconds.items():
                samples[name].append(value)
            progress.advance(step)

    errors = {"eager": _relative_l2(eager, exact), "effc": _relative_l2(ours, exact)}
    console.print(_table({name: Latency.of(s) for name, s in samples.items()}, errors))
    console.print(
        f"{torch.get_num_threads()} threads, batch {args.batch}, float32. The first call took {compiling:.1f} s, "
        f"the next compilation of the same model {cached:.1f} s.\n"
    )
    print(report)
    return 0


def _relative_l2(result: object, exact: object) -> float:
    import torch

    assert isinstance(result, torch.Tensor)
    assert isinstance(exact, torch.Tensor)
    return float((result.double() - exact).norm() / exact.norm())


def _table(latencies: dict[str, Latency], errors: dict[str, float]) -> object:
    from rich.table import Table

    table = Table("", "median", "quartiles", "speed-up", "error to float64", title="ResNet-50")
    base = latencies["eager"].median
    for name, latency in latencies.items():
        table.add_row(
            name,
            f"{latency.median * 1e3:.1f} ms",
            f"{latency.low * 1e3:.1f} - {latency.high * 1e3:.1f} ms",
            f"{base / latency.median:.2f}",
            f"{errors[name]:.1e}",
        )
    return table


COMMAND = Command(
    "demo", "compile a ResNet-50 and compare it with eager PyTorch in time and error", _add_arguments, _run
)
