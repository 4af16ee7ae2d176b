"""``effc explain``: what effc does with a model, printed, as JSON and as a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from effc.cli import target
from effc.cli.command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    target.add_arguments(parser)
    parser.add_argument("--train", action="store_true", help="compile with gradients, as for training")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report here, as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the report here, as a page of HTML")
    parser.add_argument(
        "--rounds",
        type=int,
        default=0,
        metavar="N",
        help="time so many calls, as a whole and kernel by kernel (default: 0)",
    )
    parser.add_argument(
        "--waterline",
        type=Path,
        metavar="FILE",
        help="print which kernels are bound by memory, and draw it here, as SVG",
    )


def _run(args: argparse.Namespace) -> int:
    options = target.options(args.option)
    model, inputs = target.load(args.target)
    import torch

    import effc

    with torch.set_grad_enabled(args.train):
        report = effc.explain(model, *inputs, options=options, rounds=args.rounds)
    print(report)
    if args.json is not None:
        report.to_json(args.json)
    if args.html is not None:
        report.to_html(args.html)
    if args.waterline is not None:
        water = report.waterline()
        print(water)
        water.to_svg(args.waterline, args.target)
    return 0


COMMAND = Command(
    "explain", "print what effc compiles of a model, what it leaves to PyTorch, and why", _add_arguments, _run
)
