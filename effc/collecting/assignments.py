"""Subjects by what they are made from, as plain data: so that this process or another machine can make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from effc.cli import target
from effc.collecting.shapes import Subject, layer_at


@dataclass(frozen=True)
class Assignment:
    """A model by its target on the command line; or, where that is empty, the layer at a place of the built-in spread."""

    model: str = ""
    families: tuple[str, ...] = ()
    seed: int = 0
    index: int = 0

    def subject(self) -> Subject:
        """OptionError: the target leads to no model."""
        if not self.model:
            return layer_at(self.families, self.seed, self.index)
        return Subject(f"model:{self.model}", self.model.rpartition(":")[2], _made(target.load(self.model)))


def _made(
    given: tuple[Callable[..., Any], tuple[Any, ...]],
) -> Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]:
    return lambda: given
