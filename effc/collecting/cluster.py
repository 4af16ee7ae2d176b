"""Spreading a collection over machines by a Dask scheduler: a subject is a task, and its traces come back as the bytes of trace files.

Each machine measures one kernel at a time, whatever workers it has: they share a lock. Files are written here, as tasks end, so what
has come back is kept whatever happens to the scheduler; a subject that did not come back is measured when the same command runs again.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from effc.collecting.assignments import Assignment
from effc.collecting.collector import Bench, Outcome, Request, collect, finished_name
from effc.collecting.host import HostBench
from effc.compiler.ir.errors import ArtifactError, EffcError, OptionError
from effc.costmodel.parquet import SUFFIX, files
from effc.costmodel.traces import read, write

#: Seconds in which a scheduler must answer.
_ANSWER = 20
_LOCK = Path(tempfile.gettempdir()) / "effc-collecting.lock"


class ClusterError(EffcError):
    """The scheduler cannot be reached, or went away."""


@dataclass(frozen=True)
class Returned:
    """What a task brings back: trace files' bytes, and the outcome."""

    files: tuple[bytes, ...]
    outcome: dict[str, Any]


def spread_out(
    address: str,
    assignments: Sequence[Assignment],
    request: Request,
    watch: Callable[[str, Outcome], None] = lambda text, outcome: None,
    bench: Callable[[Request], Bench] = HostBench,
) -> Outcome:
    """Collect by the workers of the scheduler at ``address``, into ``request.folder``. ``bench`` makes a worker's machine. ClusterError: as
    above; OptionError: dask.distributed is not installed.
    """
    distributed = _distributed()
    outcome = Outcome()
    done = _finished(request.folder, outcome)
    left = [a for a in assignments if finished_name(a.subject().name, request) not in done]
    outcome.reached = len(assignments) - len(left)
    try:
        client = distributed.Client(address, timeout=_ANSWER, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no scheduler answers at {address}: {error}; is `dask scheduler` running there?") from error
    with client:
        tasks = client.map(_task, left, request=request, bench=bench, pure=False)
        try:
            for task in distributed.as_completed(tasks, loop=client.loop, timeout=_limit(request)):
                _take(task, request.folder, outcome)
                watch(address, outcome)
        except distributed.TimeoutError:
            client.cancel(tasks)  # the budget is spent
    return outcome


def _take(task: Any, folder: Path, outcome: Outcome) -> None:
    """Keep what a task brought back."""
    if task.status in ("cancelled", "lost"):
        raise ClusterError(
            f"the scheduler went away; {outcome.records} records are kept in {folder}, and the same command goes on from there"
        )
    outcome.reached += 1
    if task.status == "error":
        outcome.lost[str(task.exception()).partition("\n")[0]] += 1
        return
    returned: Returned = task.result()
    for content in returned.files:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incoming-") as place:
            path = Path(place) / f"part{SUFFIX}"
            path.write_bytes(content)
            write(folder, read(path))
    for name, value in returned.outcome.items():
        if name == "lost":
            outcome.lost.update(Counter(value))
        elif name not in ("reached", "unreadable"):
            setattr(outcome, name, getattr(outcome, name) + value)


def _task(assignment: Assignment, request: Request, bench: Callable[[Request], Bench]) -> Returned:
    """On a worker: one subject, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="effc-collecting-") as place, _alone():
        own = replace(request, folder=Path(place))
        outcome = collect(iter([assignment.subject()]), own, bench(own))
        found = tuple(path.read_bytes() for path in sorted(own.folder.glob(f"*{SUFFIX}")))
    return Returned(found, asdict(outcome))


@contextmanager
def _alone() -> Iterator[None]:
    """Only one process of this machine at a time."""
    with open(_LOCK, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _finished(folder: Path, outcome: Outcome) -> set[str]:
    """Subjects that any machine has finished."""
    found: set[str] = set()
    for path in files([folder]) if any(folder.glob(f"*{SUFFIX}")) else []:
        try:
            found.update(read(path).finished)
        except ArtifactError as error:
            outcome.unreadable.append(str(error))
    return found


def _limit(request: Request) -> float | None:
    return None if request.seconds == float("inf") else request.seconds


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise OptionError("--scheduler needs dask.distributed: pip install 'effc[cluster]'") from None
    return distributed
