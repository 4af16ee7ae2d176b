"""Naming a model on the command line: ``package.module:function`` or ``path/to/file.py:function``."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from effc.compiler.ir.errors import OptionError

HELP = "MODULE:FUNCTION or FILE.py:FUNCTION; the function takes nothing and returns (model, inputs), inputs a tuple"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``target``, and ``option``: what `load` and `options` take."""
    parser.add_argument("target", help=HELP)
    parser.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of effc, such as fallback=error",
    )


def load(target: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The model and the inputs that ``target`` names; OptionError where it does not lead to them."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise OptionError(f"'{target}' does not name a model; write {HELP}")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_path(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise OptionError(f"{place} has no function '{name}'")
    made = function()
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0])):
        raise OptionError(f"{target} returned {type(made).__name__}; it must return (model, inputs)")
    model, inputs = made
    return model, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["fallback=error", "check=True"]`` as a dictionary; values are Python literals, else text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise OptionError(f"'{pair}' is not an option; write NAME=VALUE")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise OptionError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.append(str(path.parent.resolve()))  # what stands beside the file can be imported by it
    spec.loader.exec_module(module)
    return module


def _from_path(name: str) -> ModuleType:
    sys.path.append(str(Path.cwd()))  # last: a folder here that is named like an installed package must not shadow it
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise OptionError(f"no module is named '{error.name}'; a file is named with its .py") from None
