"""Every op of PyTorch's OpInfo database through ``torch.compile``, on CPU in float32, against eager.

    python tools/opinfo_sweep.py --out sweep.jsonl                # all; run it again to go on where it stopped
    python tools/opinfo_sweep.py --ops add,nn.functional.conv2d --limit 2 --out -

Prints the number of ops compiled, partly compiled, copies only, and left to ATen, with the reasons ranked; ``--json``
writes it. The exit status is 1 where an op mismatched, raised or crashed.
"""

from __future__ import annotations

import argparse
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


def load(path: Path, backend: str, limit: int) -> Results:
    """Results of an earlier run with the same backend and limit; an unfinished last line is dropped."""
    found: Results = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if (entry["backend"], entry["limit"]) == (backend, limit):
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


def sweep(
    names: list[str],
    backend: str,
    limit: int,
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
        worker = isolated.Worker(WORKER, backend, str(limit))
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
    parser.add_argument("--ops", help="comma-separated full names; default: all")
    parser.add_argument("--out", default="opinfo.jsonl", help="results so far, one line an op; - for none")
    parser.add_argument("--json", help="write the summary there")
    args = parser.parse_args()
    names = [op.full_name for op in check.ops(args.ops.split(",") if args.ops else None)]
    path = None if args.out == "-" else Path(args.out)
    results = load(path, args.backend, args.limit) if path else {}
    results = {name: found for name, found in results.items() if name in names}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("ops", total=len(names), completed=len(results))

        def done(name: str, found: list[dict[str, Any]]) -> None:
            results[name] = found
            progress.update(task, advance=1, description=name)
            if path:
                with path.open("a") as f:
                    f.write(
                        json.dumps({"op": name, "backend": args.backend, "limit": args.limit, "samples": found}) + "\n"
                    )

        sweep([n for n in names if n not in results], args.backend, args.limit, args.jobs, args.timeout, done)
    data = table.summary({name: results[name] for name in names})
    print(table.text(data))
    if args.json:
        Path(args.json).write_text(json.dumps(data, indent=1))
    return 1 if data["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
