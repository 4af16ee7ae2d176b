"""What ``EFFC_DUMP=folder`` makes the pipeline write about a region, in a folder of its own below that one.

``00-input.mlir``, ``01-NAME.mlir``, …: the IR after every pass. ``program.txt``: the kernels and their calls. Where a stage fails,
``reproducer.mlir``: a file that ``effc-opt`` runs to the same failure by the line at its head.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from effc.compiler.ir.instruments import Dump, reproducer
from effc.compiler.ir.passes import Instrument
from effc.compiler.ir.program import Program
from effc.compiler.ir.program_text import program_text


@dataclass(frozen=True)
class RegionDump:
    """Writes nothing where ``folder`` is None."""

    folder: Path | None

    @staticmethod
    def of(text: str) -> RegionDump:
        """For the region with graph IR ``text``."""
        root = os.environ.get("EFFC_DUMP")
        return RegionDump(Path(root) / f"lower-{hashlib.sha256(text.encode()).hexdigest()[:12]}" if root else None)

    def instruments(self) -> tuple[Instrument, ...]:
        return () if self.folder is None else (Dump(self.folder),)

    def program(self, program: Program) -> None:
        self._write("program.txt", lambda: program_text(program))

    @contextmanager
    def reproduced(self, text: str, arguments: str) -> Iterator[None]:
        """On a failure within, ``effc-opt FILE arguments`` on ``text`` is to show it again."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self._write("reproducer.mlir", lambda: reproducer(text, arguments, reason))
            raise

    def _write(self, name: str, content: Callable[[], str]) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(content())
