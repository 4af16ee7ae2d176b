"""``effc costmodel train`` and ``eval``: models from traces, and how good they are."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effc.cli import costmodel_gpu
from effc.cli import costmodel_tables as tables
from effc.cli.command import Command
from effc.compiler.ir.errors import OptionError

if TYPE_CHECKING:
    from effc.costmodel.model.dataset import Dataset
    from effc.costmodel.traces import Part

#: Predictions of what was held out that a card keeps, for the plot.
_POINTS = 600


def _add_traces(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--traces", type=Path, nargs="+", required=True, metavar="PLACE", help="trace files, or folders"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="threads that train (default: all cores)"
    )
    parser.add_argument(
        "--rounds", type=int, default=None, help="trees of each target (default: stop when more do not help)"
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_traces(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where the model goes: text files and a card"
    )
    parser.add_argument("--seed", type=int, default=0, help="of training (default: 0)")
    parser.add_argument(
        "--from", dest="base", metavar="MODEL", help="adapt this model, a folder or a shipped one's name, to the traces"
    )
    parser.add_argument("--samples", type=int, metavar="N", help="with --from: learn from so many records only")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    _add_traces(parser)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="train with so many seeds (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def _train(args: argparse.Namespace) -> int:
    from effc.costmodel.model import files
    from effc.costmodel.model.dataset import dataset
    from effc.costmodel.model.training import train

    if args.samples is not None and args.base is None:
        raise OptionError("--samples is for adapting a model: give --from too")
    _check(args)
    if costmodel_gpu.takes(args.traces):
        return costmodel_gpu.train(args)
    data = dataset(_parts(args))
    if args.base is not None:
        return _adapt(args, data)
    with tables.progress() as watch:
        wide, told = _held_out(args, data, watch) if len(set(data.families)) > 1 else (1.0, {})
        predictor = train(data, args.seed, args.workers, args.rounds, watch).widened(wide)
    files.save(args.out, predictor, data, told)
    print(f"{args.out}: a model of {len(data)} records of {len(set(data.families))} families")
    _skipped(data.skipped)
    if not told:
        print("its errors are not known: with traces of one family, none can be held out")
    for held in told.get("errors", {}):
        tables.latency(told["errors"][held], tables.TITLES[held])
        tables.code(told["code_errors"][held], tables.TITLES[held])
    return 0


def _held_out(args: argparse.Namespace, data: Dataset, watch: Any) -> tuple[float, dict[str, Any]]:
    """How wide ranges must be, and what the card says of errors."""
    from effc.costmodel.model.code_evaluation import held_out_code
    from effc.costmodel.model.evaluation import HELD, held_out

    errors, code_errors, points, wide = {}, {}, {}, 1.0
    for held in HELD:
        judged = held_out(data, (args.seed,), args.workers, args.rounds, watch, held)
        errors[held] = {family: {who: e.to_json() for who, e in by.items()} for family, by in judged.errors.items()}
        code = held_out_code(data, (args.seed,), args.workers, args.rounds, watch, held)
        code_errors[held] = {family: {who: e.to_json() for who, e in by.items()} for family, by in code.items()}
        step = -(-len(data) // _POINTS)
        points[held] = [
            [str(family), float(f"{seconds:.4g}"), float(f"{predicted:.4g}")]
            for family, seconds, predicted in zip(data.families, data.seconds, judged.predicted, strict=True)
        ][::step]
        wide = max(wide, judged.widening)
    return wide, {"errors": errors, "code_errors": code_errors, "points": points}


def _adapt(args: argparse.Namespace, data: Dataset) -> int:
    from effc.costmodel.model import files
    from effc.costmodel.model.shipped import named
    from effc.costmodel.model.transfer import adapted, sampled

    base = files.load(named(args.base))
    count = len(data) if args.samples is None else args.samples
    chosen, rest = sampled(data, count, args.seed)
    with tables.progress() as watch:
        predictor, before, after = adapted(base.predictor, chosen, rest, args.seed, args.workers, watch)
    told: dict[str, Any] = {"adapted": {"from": list(base.card["families"]), "records": len(chosen)}}
    if after is not None and before is not None:
        told["errors"] = {"shape": {"all": {"model": after.to_json(), "as it was": before.to_json()}}}
    files.save(args.out, predictor, chosen, told)
    print(f"{args.out}: {args.base}, adapted by {len(chosen)} records")
    if after is None:
        print("its errors are not known: no kernel is left that it has not seen")
    else:
        tables.latency(told["errors"]["shape"], "kernels that it has not seen")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from effc.costmodel.model.code_evaluation import held_out_code
    from effc.costmodel.model.dataset import dataset
    from effc.costmodel.model.evaluation import HELD, held_out, repeated
    from effc.costmodel.model.pace import pace
    from effc.costmodel.model.targets import LATENCY
    from effc.costmodel.model.training import train

    if args.seeds < 1:
        raise OptionError("--seeds must be at least 1")
    _check(args)
    if costmodel_gpu.takes(args.traces):
        return costmodel_gpu.judge(args)
    parts = list(_parts(args))
    data, seeds = dataset(parts), range(args.seeds)
    _skipped(data.skipped)
    found: dict[str, Any] = {"held_out": {}, "code": {}}
    for held in HELD:
        with tables.progress() as watch:
            judged = held_out(data, seeds, args.workers, args.rounds, watch, held).errors
            code = held_out_code(data, seeds, args.workers, args.rounds, watch, held)
        for name, by_family in (("held_out", judged), ("code", code)):
            found[name][held] = {f: {who: e.to_json() for who, e in by.items()} for f, by in by_family.items()}
        tables.latency(found["held_out"][held], tables.TITLES[held])
        tables.code(found["code"][held], tables.TITLES[held])
    count, mean, median = repeated(parts)
    if count:
        print(
            f"noise floor: {count} records measured again differ by {mean:.1%} on average, {median:.1%} in the median"
        )
    else:
        print("noise floor: nothing was measured twice; collect again into another folder, and give both")
    predictor = train(data, 0, args.workers, args.rounds, targets=LATENCY)
    traces = (trace for part in parts for trace in part.traces)
    batch, making, asking = pace(predictor, traces, parts[0].hardware)
    print(
        f"a core takes {1e6 * making:.0f} us for the features of a candidate, {1e6 * asking:.0f} us for its time ({batch} at once)"
    )
    if args.json is not None:
        noise = {"records": count, "mean": mean, "median": median} if count else None
        args.json.write_text(
            json.dumps({**found, "noise": noise, "seconds": [making, asking]}, indent=1), encoding="utf-8"
        )
    return 0


def _parts(args: argparse.Namespace) -> Iterator[Part]:
    from effc.costmodel.model.training import ROUNDS
    from effc.costmodel.parquet import files
    from effc.costmodel.traces import read

    if args.rounds is None:
        args.rounds = ROUNDS
    return map(read, files(args.traces))


def _check(args: argparse.Namespace) -> None:
    if args.workers < 1 or (args.rounds is not None and args.rounds < 1):
        raise OptionError("--workers and --rounds must be at least 1")


def _skipped(reasons: Mapping[str, int]) -> None:
    for reason, count in reasons.items():
        print(f"left out {count} records: {reason}")


COMMANDS = (
    Command(
        "train", "make a model of traces, or adapt one: LightGBM's texts and a card with errors", _add_train, _train
    ),
    Command(
        "eval", "train without each family of the traces, or some shapes, and say how well they are predicted", _add_eval, _eval
    ),
)  # fmt: skip
