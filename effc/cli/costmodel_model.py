"""``effc costmodel train``, ``eval`` and ``show``: models from traces, and how good they are."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effc.cli.command import Command
from effc.compiler.ir.errors import OptionError

if TYPE_CHECKING:
    from effc.costmodel.model.evaluation import Errors
    from effc.costmodel.traces import Part

_COLUMNS = {
    "records": "records",
    "mape": "MAPE",
    "within": "within 10 %",
    "tau": "Kendall tau",
    "regret": "regret",
    "top_regret": "best of 5",
    "covered": "in range",
    "unsure": "unsure",
}


def _add_traces(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--traces", type=Path, nargs="+", required=True, metavar="PLACE", help="trace files, or folders"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads that train (default: all)")
    parser.add_argument("--rounds", type=int, default=600, help="trees of each quantile (default 600)")


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_traces(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the model: texts and a card")
    parser.add_argument("--seed", type=int, default=0)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    _add_traces(parser)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="train with so many seeds (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="FOLDER", help="of a trained model")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="features to list (default 20)")


def _train(args: argparse.Namespace) -> int:
    from effc.costmodel.model import files
    from effc.costmodel.model.dataset import dataset
    from effc.costmodel.model.evaluation import held_out
    from effc.costmodel.model.training import train

    data = dataset(_parts(args))
    with _progress() as watch:
        judged = held_out(data, (args.seed,), args.workers, args.rounds, watch) if len(set(data.families)) > 1 else {}
        predictor = train(data, args.seed, args.workers, args.rounds, watch)
    found = {family: {who: e.to_json() for who, e in by.items()} for family, by in judged.items()}
    files.save(args.out, predictor, data, found)
    print(f"{args.out}: a model of {len(data)} records of {len(set(data.families))} families")
    _skipped(data.skipped)
    if not judged:
        print("its errors are not known: with traces of one family, none can be held out")
        return 0
    _print(judged)
    return 0


def _eval(args: argparse.Namespace) -> int:
    from effc.costmodel.model.dataset import dataset
    from effc.costmodel.model.evaluation import held_out, repeated

    if args.seeds < 1:
        raise OptionError("--seeds must be at least 1")
    parts = list(_parts(args))
    data = dataset(parts)
    with _progress() as watch:
        judged = held_out(data, range(args.seeds), args.workers, args.rounds, watch)
    _skipped(data.skipped)
    _print(judged)
    count, mean, median = repeated(parts)
    if count:
        print(
            f"noise floor: {count} records measured again differ by {mean:.1%} on average, {median:.1%} in the median"
        )
    else:
        print("noise floor: nothing was measured twice; collect again into another folder, and give both")
    if args.json is not None:
        found: dict[str, Any] = {f: {who: e.to_json() for who, e in by.items()} for f, by in judged.items()}
        noise = {"records": count, "mean": mean, "median": median} if count else None
        args.json.write_text(json.dumps({"held_out": found, "noise": noise}, indent=1), encoding="utf-8")
    return 0


def _show(args: argparse.Namespace) -> int:
    from effc.costmodel.model import files

    model = files.load(args.model)
    card = model.card
    for machine in card["machines"]:
        print(f"{machine['name']}, {machine['cores']} cores, vectors of {machine['vector_bytes']} bytes")
    print(f"{card['records']} records: " + ", ".join(f"{count} {name}" for name, count in card["families"].items()))
    if card["errors"]:
        _table({family: by["model"] for family, by in card["errors"].items()}, "on families held out")
    gains = model.predictor.boosters["median"].feature_importance(importance_type="gain")
    ranked = sorted(zip(card["features"]["columns"], gains, strict=True), key=lambda pair: -pair[1])
    total = sum(gains) or 1.0
    for name, gain in ranked[: args.top]:
        print(f"{gain / total:6.1%}  {name}")
    return 0


def _parts(args: argparse.Namespace) -> Iterator[Part]:
    from effc.costmodel.traces import files, read

    if min(args.workers, args.rounds) < 1:
        raise OptionError("--workers and --rounds must be at least 1")
    return map(read, files(args.traces))


def _skipped(reasons: Mapping[str, int]) -> None:
    for reason, count in reasons.items():
        print(f"left out {count} records: {reason}")


def _print(judged: Mapping[str, Mapping[str, Errors]]) -> None:
    rows = {family: by["model"].to_json() for family, by in judged.items()}
    rows |= {f"all, by {who}": judged["all"][who].to_json() for who in ("roofline", "constant", "random")}
    _table(rows, "on families held out")


def _table(rows: Mapping[str, Mapping[str, float | None]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *_COLUMNS.values(), title=title)
    for name, values in rows.items():
        table.add_row(name, *(_figure(column, values[column]) for column in _COLUMNS))
    Console(width=None if os.isatty(1) else 120).print(table)


def _figure(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    if column == "records":
        return f"{value:.0f}"
    return f"{value:.2f}" if column == "tau" else f"{value:.1%}"


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Shows what is being trained."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("features", total=None)
        yield lambda text: progress.update(task, description=f"training: {text}")


COMMANDS = (
    Command("train", "make a model of traces: LightGBM's text and a card with its errors", _add_train, _train),
    Command(
        "eval", "train without each family of the traces in turn, and say how well it is predicted", _add_eval, _eval
    ),
    Command("show", "what a model was made of, how good it is, and which features it uses", _add_show, _show),
)
