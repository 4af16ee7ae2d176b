"""The command line, ``effc``: one file a subcommand, each with a ``COMMAND``; heavy imports wait until one runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from effc.cli import bench, bisect, cache, costmodel, demo, explain
from effc.compiler.ir.errors import EffcError

COMMANDS = (demo.COMMAND, explain.COMMAND, bisect.COMMAND, cache.COMMAND, bench.COMMAND, costmodel.COMMAND)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is the subcommand's, or 1 after one message on stderr where effc refuses."""
    args = parser().parse_args(argv)
    try:
        status: int = args.run(args)
    except BrokenPipeError:  # `effc explain … | head`
        return 0
    except EffcError as error:
        print("\n".join([f"effc: error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    return status


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="effc", description="A compiler backend for PyTorch: torch.compile(m, backend='effc')."
    )
    top.add_argument("--version", action="version", version=f"effc {version('effc')}")
    subcommands = top.add_subparsers(title="subcommands", metavar="SUBCOMMAND", required=True)
    for command in COMMANDS:
        sub = subcommands.add_parser(command.name, help=command.help, description=command.help)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return top


if __name__ == "__main__":
    sys.exit(main())
