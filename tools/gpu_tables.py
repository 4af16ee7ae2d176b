"""Every table that docs/gpu.md owes, on a machine with a GPU, by one command that goes on where it stopped.

    PYTHONPATH=tests:tools python -P tools/gpu_tables.py FOLDER [--minutes 14] [--only NAMES] [--dry-run]

Tables, in the order of their worth: ``tests`` (`test_gpu_on_device.py`), kernels against PyTorch's (`gpu_table_rows.py`), and ``models``
against eager, Inductor and torchao (``effc bench --device cuda``). Each row is written into FOLDER as soon as it is found, so a second call
measures what is left. A row at which a process ends, or of which nothing is heard for long, has failed, and another process begins behind
it. No table takes more than its own limit. ``tables.md`` has all that was found so far. ``--dry-run``: kernels alone, at small sizes, by
the interpreter.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gpu_table_bench import Interpreted, OnGpu
from gpu_table_kept import Kept, table
from gpu_table_models import MODELS, TESTS, measured
from gpu_table_rows import PIECES, rows

from effc.compiler.ir.errors import LoweringError

#: Seconds between two looks at a process, for it to compile all kernels before its first row, and of what it starts to be read.
_WATCH, _START, _SPARE = 0.2, 180.0, 30.0


@dataclass(frozen=True)
class Table:
    """``limit``: seconds for all of its rows in one call; ``patience``: for one of them."""

    name: str
    rows: tuple[str, ...]
    limit: float
    patience: float


def tables(small: bool) -> list[Table]:
    """All, in the order in which they are measured."""
    kernels = [Table(name, tuple(r.name for r in rows(name, small)), 120.0, 60.0) for name in PIECES]
    if small:
        return kernels
    return [Table("tests", (TESTS,), 330.0, 330.0), *kernels, Table("models", tuple(MODELS), 600.0, 420.0)]


def measure(wanted: Table, folder: Path, small: bool) -> int:
    """The rows of one table that are left, in this process; 1: it is of no more use after a failure."""
    kept = Kept(folder / f"{wanted.name}.jsonl")
    left = kept.rest(wanted.rows)
    if wanted.name in PIECES:
        return _kernels(wanted.name, left, kept, small)
    for row in left:
        kept.begin(row)
        try:
            kept.finish(row, measured(row, folder, wanted.patience - _SPARE))
        except RuntimeError as error:
            kept.fail(row, str(error))
    return 0


def _kernels(name: str, left: list[str], kept: Kept, small: bool) -> int:
    bench = Interpreted() if small else OnGpu()
    mine = [row for row in rows(name, small) if row.name in left]
    bench.compile([wanted for row in mine for wanted in row.wanted()])
    for row in mine:
        kept.begin(row.name)
        try:
            kept.finish(row.name, row.run(bench))
        except LoweringError as error:
            kept.fail(row.name, str(error))
        except Exception as error:  # CUDA's context may be broken for good
            kept.fail(row.name, f"{type(error).__name__}: {error}")
            return 1
    return 0


def fill(wanted: Table, kept: Kept, until: float, command: list[str], log: Path) -> None:
    """Processes of ``command`` until no row is left, or the time is over. What a row does to its process costs that row alone."""
    until = min(until, time.monotonic() + wanted.limit)
    while kept.rest(wanted.rows) and time.monotonic() < until:
        before = kept.rest(wanted.rows)
        why = _ended(command, kept, until, wanted.patience, log)
        if why is not None:
            kept.fail_begun(why)
        if kept.rest(wanted.rows) == before:  # it does not even begin
            print(f"{wanted.name}: {why or 'the time is over'}; {log} says more")
            return


def _ended(command: list[str], kept: Kept, until: float, patience: float, log: Path) -> str | None:
    """Why a process ended before its rows did; None: they are done, or the time is over."""
    with log.open("a") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=_environment())
    lines, heard, allowed = kept.lines, time.monotonic(), _START
    try:
        while process.poll() is None:
            time.sleep(_WATCH)
            if kept.lines > lines:
                lines, heard, allowed = kept.lines, time.monotonic(), patience
            over = time.monotonic() > until
            if over or time.monotonic() - heard > allowed:
                return None if over else f"nothing was heard of it for {allowed:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            process.wait()
    return None if process.returncode == 0 else f"its process ended with {process.returncode}"


def _environment() -> dict[str, str]:
    """In which this file finds what it imports."""
    tools = Path(__file__).resolve().parent
    found = [str(tools.parent / "tests"), str(tools), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found))}


def main(arguments: list[str]) -> int:
    """Measure, and write ``tables.md``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--table", help=argparse.SUPPRESS)  # in a process of its own
    given = parser.parse_args(arguments)
    known = tables(given.dry_run)
    if given.table:
        return measure(next(t for t in known if t.name == given.table), given.folder, given.dry_run)
    names = [name for name in given.only.split(",") if name]
    if not set(names) <= {t.name for t in known}:
        parser.error(f"--only: there are {', '.join(t.name for t in known)}")
    chosen = [t for t in known if not names or t.name in names]
    given.folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * given.minutes
    for one in chosen:
        kept = Kept(given.folder / f"{one.name}.jsonl")
        command = [sys.executable, "-P", __file__, str(given.folder), "--table", one.name]
        fill(one, kept, until, [*command, *(["--dry-run"] if given.dry_run else [])], given.folder / f"{one.name}.log")
        text = "\n".join(table(t.name, Kept(given.folder / f"{t.name}.jsonl"), t.rows) for t in known)
        (given.folder / "tables.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
