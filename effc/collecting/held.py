"""What a folder of traces holds already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from effc.compiler.ir.errors import ArtifactError
from effc.costmodel.parquet import SUFFIX, files

Part = TypeVar("Part")


def held(folder: Path, read: Callable[[Path], Part], unreadable: list[str]) -> Iterator[Part]:
    """The content of each file; why one cannot be read is added to ``unreadable``."""
    for path in files([folder]) if any(folder.glob(f"*{SUFFIX}")) else []:
        try:
            part = read(path)
        except ArtifactError as error:
            unreadable.append(str(error))
            continue
        yield part
