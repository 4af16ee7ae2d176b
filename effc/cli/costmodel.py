"""``effc costmodel``: measurements of kernels, and cost models made of them."""

from __future__ import annotations

import argparse

from effc.cli import costmodel_collect, costmodel_show, costmodel_train
from effc.cli.command import Command

_ACTIONS = (costmodel_collect.COMMAND, *costmodel_train.COMMANDS, costmodel_show.COMMAND)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for command in _ACTIONS:
        action = actions.add_parser(command.name, help=command.help, description=command.help)
        command.add_arguments(action)
        action.set_defaults(action=command.run)


def _run(args: argparse.Namespace) -> int:
    status: int = args.action(args)
    return status


COMMAND = Command("costmodel", "collect measurements of kernels, and train and judge cost models", _add_arguments, _run)
