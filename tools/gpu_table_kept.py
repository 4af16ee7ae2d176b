"""What is known of the rows of a table, in a file of JSON lines that outlives the process that finds them; and the table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Found:
    """``microseconds`` by column, the first being what the others are compared with; ``facts``: other numbers."""

    microseconds: dict[str, float]
    facts: dict[str, float] = field(default_factory=dict)


class Kept:
    """The rows of one table in ``path``: each is begun, then found or failed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> int:
        """How many there are: one more whenever a row is begun, found or failed."""
        return len(self._lines())

    def begin(self, row: str) -> None:
        self._add(row, "begun", None)

    def finish(self, row: str, found: Found) -> None:
        self._add(row, "found", asdict(found))

    def fail(self, row: str, why: str) -> None:
        self._add(row, "failed", why)

    def fail_begun(self, why: str) -> None:
        """The row at which a process ended, if there is one, has failed."""
        for row, (state, _) in self._last().items():
            if state == "begun":
                self.fail(row, why)

    def rest(self, rows: Sequence[str]) -> list[str]:
        """Those of ``rows`` that are neither found nor failed."""
        ended = {row for row, (state, _) in self._last().items() if state != "begun"}
        return [row for row in rows if row not in ended]

    def found(self) -> dict[str, Found]:
        return {row: Found(**what) for row, (state, what) in self._last().items() if state == "found"}

    def failed(self) -> dict[str, str]:
        return {row: what for row, (state, what) in self._last().items() if state == "failed"}

    def _add(self, row: str, state: str, what: object) -> None:
        text = self._text()
        start = "\n" if text and not text.endswith("\n") else ""
        with self.path.open("a") as file:
            file.write(f"{start}{json.dumps([row, state, what])}\n")

    def _last(self) -> dict[str, tuple[str, Any]]:
        return {row: (state, what) for row, state, what in self._lines()}

    def _lines(self) -> list[tuple[str, str, Any]]:
        """Whole ones: a process may have ended within one."""
        found = []
        for line in self._text().split("\n"):
            with suppress(json.JSONDecodeError):
                row, state, what = json.loads(line)
                found.append((row, state, what))
        return found

    def _text(self) -> str:
        return self.path.read_text() if self.path.exists() else ""


def table(title: str, kept: Kept, rows: Sequence[str]) -> str:
    """In Markdown; beside a time how many times faster it is than the first column's, and the geometric mean of these below."""
    found = {row: kept.found()[row] for row in rows if row in kept.found()}
    columns = list(dict.fromkeys(name for one in found.values() for name in one.microseconds))
    facts = list(dict.fromkeys(name for one in found.values() for name in one.facts))
    lines = [f"## {title}", ""]
    if found:
        lines += [_line("", *(f"{c}, µs" for c in columns), *facts), _line(*["---"] * (1 + len(columns) + len(facts)))]
        lines += [
            _line(row, *_cells(one, columns), *(f"{one.facts[f]:.3g}" if f in one.facts else "" for f in facts))
            for row, one in found.items()
        ]
        if columns:
            lines.append(_line("geometric mean", *_means([*found.values()], columns), *[""] * len(facts)))
        lines.append("")
    lines += [f"- {row}: {why}" for row, why in kept.failed().items() if row in rows]
    left = kept.rest(rows)
    lines += [f"- not measured yet: {len(left)} of {len(rows)}"] if left else []
    return "\n".join(lines) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(one: Found, columns: Sequence[str]) -> list[str]:
    times, first = one.microseconds, next(iter(one.microseconds), "")
    ratios = {c: "" if c == first else f" ({times[first] / times[c]:.2f}x)" for c in times}
    return [f"{times[c]:.1f}{ratios[c]}" if c in times else "" for c in columns]


def _means(found: Sequence[Found], columns: Sequence[str]) -> list[str]:
    """Of rows that begin with the same column as the first."""
    first, cells = next(iter(found[0].microseconds), ""), list[str]()
    for column in columns:
        ratios = [
            one.microseconds[first] / one.microseconds[column]
            for one in found
            if first in one.microseconds and column in one.microseconds
        ]
        cells.append(f"{statistics.geometric_mean(ratios):.2f}x" if ratios and column != first else "")
    return cells
