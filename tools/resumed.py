"""Results of a long measurement in a file, so that one that was interrupted goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Kept:
    """Values that JSON holds, by name; in the file at ``path`` from one run to the next, or nowhere (None)."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: dict[str, Any] = {}
        if path is not None and path.exists():
            self._found = json.loads(path.read_text(encoding="utf-8"))

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def values(self) -> list[Any]:
        """In the order in which their names came."""
        return list(self._found.values())

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._found[name] = value
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new = self._path.with_suffix(".new")
            new.write_text(json.dumps(self._found), encoding="utf-8")
            new.replace(self._path)
