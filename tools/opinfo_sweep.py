"""Every op of PyTorch's OpInfo database through ``torch.compile``, on CPU, against eager.

    python tools/opinfo_sweep.py --out sweep.jsonl                 # all; run it again to go on where it stopped
    python tools/opinfo_sweep.py --out sweep.jsonl --part 3/20     # a part of it, every 20th op; the table is of all so far
    python tools/opinfo_sweep.py --only 'linalg.*,add' --limit 2 --out -
    python tools/opinfo_sweep.py --dtype bfloat16 --limit 3 --out bf16.jsonl

Prints the number of ops compiled, partly compiled, copies only, and left to ATen, with the reasons ranked; ``--json``
writes it. The exit status is 1 where an op mismatched, raised or crashed.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import isolated
from sweep import check, table

WORKER = Path(__file__).resolve().parents[1] / "tests" / "sweep" / "worker.py"
Results = dict[str, list[dict[str, Any]]]


def load(path: Path, run: dict[str, Any]) -> Results:
    """Results of an earlier run with the same backend, limit and dtype; an unfinished last line is dropped."""
    found: Results = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if all(entry.get(key) == value for key, value in run.items()):
                found[entry["op"]] = entry["samples"]
    return found


def verdicts(worker: isolated.Worker, name: str, timeout: float) -> list[dict[str, Any]]:
    """A verdict for each sample of the op; a sample on which the process dies or exceeds ``timeout`` s is ``crash``."""
    found: list[dict[str, Any]] = []
    while True:
        try:
            for verdict in worker.answers({"op": name, "first": len(found)}, timeout):
                found.append(verdict)
        except isolated.WorkerDied as err:
            found.append({"status": "crash", "detail": str(err)})
        else:
            return found


def selected(names: list[str], patterns: str | None) -> list[str]:
    """The names that one of the comma-separated shell patterns matches, all for None; ValueError: one that matches none."""
    if patterns is None:
        return names
    wanted = patterns.split(",")
    for pattern in wanted:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"no op of the database is named {pattern!r} in this dtype")
    return [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in wanted)]


def part_of(names: list[str], part: str) -> list[str]:
    """``i/n``: every n-th name from the i-th on, i in 1 … n; ValueError: another text."""
    number, _, of = part.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise ValueError(f"--part takes i/n with 1 <= i <= n, not {part!r}")
    return names[int(number) - 1 :: int(of)]


def sweep(
    names: list[str],
    run: dict[str, Any],
    jobs: int,
    timeout: float,
    done: Callable[[str, list[dict[str, Any]]], None],
) -> None:
    """Check every op in ``jobs`` processes; ``done(op, verdicts)`` is called under a lock as each finishes."""
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        todo.put(name)
    lock = threading.Lock()

    def work() -> None:
        worker = isolated.Worker(WORKER, run["backend"], str(run["limit"]), run["dtype"])
        try:
            while True:
                try:
                    name = todo.get_nowait()
                except queue.Empty:
                    return
                found = verdicts(worker, name, timeout)
                with lock:
                    done(name, found)
        finally:
            worker.stop()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="effc")
    parser.add_argument("--limit", type=int, default=20, help="samples an op")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a sample may take")
    parser.add_argument("--only", help="comma-separated full names or shell patterns; default: all")
    parser.add_argument("--part", default="1/1", help="i/n: every n-th of the ops from the i-th on")
    parser.add_argument("--dtype", default="float32", choices=check.DTYPES, help="of the samples")
    parser.add_argument("--out", default="opinfo.jsonl", help="results so far, one line an op; - for none")
    parser.add_argument("--json", help="write the summary there")
    args = parser.parse_args()
    try:
        every = selected([op.full_name for op in check.ops(dtype=check.DTYPES[args.dtype])], args.only)
        names = part_of(every, args.part)
    except ValueError as err:
        parser.error(str(err))
    path = None if args.out == "-" else Path(args.out)
    run = {"backend": args.backend, "limit": args.limit, "dtype": args.dtype}
    results = load(path, run) if path else {}
    results = {name: found for name, found in results.items() if name in every}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        todo = [n for n in names if n not in results]
        task = progress.add_task("ops", total=len(todo))

        def done(name: str, found: list[dict[str, Any]]) -> None:
            results[name] = found
            progress.update(task, advance=1, description=name)
            if path:
                with path.open("a") as f:
                    f.write(json.dumps({"op": name, **run, "samples": found}) + "\n")

        sweep(todo, run, args.jobs, args.timeout, done)
    data = table.summary({name: results[name] for name in every if name in results})
    print(table.text(data, args.dtype))
    if len(results) < len(every):
        print(f"{len(every) - len(results)} of {len(every)} ops are still to be run")
    if args.json:
        Path(args.json).write_text(json.dumps(data, indent=1))
    return 1 if data["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
