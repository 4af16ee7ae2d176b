"""``effc costmodel show``: what a model was made of, how good it is, and which features it uses."""

from __future__ import annotations

import argparse
from pathlib import Path

from effc.cli import costmodel_gpu, costmodel_plot
from effc.cli import costmodel_tables as tables
from effc.cli.command import Command
from effc.compiler.ir.errors import OptionError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a trained model, or the name of a shipped one")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="features to list (default: 20)")
    parser.add_argument(
        "--target",
        default="latency.median",
        metavar="NAME",
        help="the target whose features are listed (default: latency.median)",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw predicted against measured times of what was held out, as SVG"
    )


def _show(args: argparse.Namespace) -> int:
    from effc.costmodel.model import files
    from effc.costmodel.model.shipped import named

    place = named(args.model)
    if costmodel_gpu.is_one(place):
        return costmodel_gpu.show(place)
    model = files.load(place)
    card, forests = model.card, model.predictor.forests
    if args.target not in forests:
        raise OptionError(f"--target {args.target}: the model has {', '.join(forests)}")
    for machine in model.machines:
        print(f"{machine.name}, {machine.cores} cores, vectors of {machine.vector_bytes} bytes")
    print(f"{card['records']} records: " + ", ".join(f"{count} {name}" for name, count in card["families"].items()))
    for held, errors in card.get("errors", {}).items():
        tables.latency(errors, tables.TITLES[held])
    for held, errors in card.get("code_errors", {}).items():
        tables.code(errors, tables.TITLES[held])
    forest = forests[args.target]
    shares = forest.gains / (forest.gains.sum() or 1.0)
    print(f"what decides {args.target}, by gain:")
    for share, name in sorted(zip(shares, forest.features, strict=True), reverse=True)[: args.top]:
        print(f"{share:6.1%}  {name}")
    if args.plot is not None:
        points = card.get("points", {})
        if not points:
            raise OptionError(
                "the card of this model has no predictions of what was held out: there is nothing to draw"
            )
        args.plot.write_text(costmodel_plot.drawn(points), encoding="utf-8")
        print(f"predicted against measured times: {args.plot}")
    return 0


COMMAND = Command("show", "what a model was made of, how good it is, and which features it uses", _add_arguments, _show)
