"""Intermediate forms of a graph, for whoever looks for a fault."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

_numbers = itertools.count()


class Dump:
    """Writes into the folder that the environment variable ``EFFC_DUMP`` names, if it is set."""

    def __init__(self, kind: str) -> None:
        root = os.environ.get("EFFC_DUMP")
        self.folder = Path(root) / f"{next(_numbers):03d}_{kind}" if root else None

    def write(self, name: str, text: Callable[[], str]) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text())
