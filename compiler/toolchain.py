"""The toolchain processes, seen from the user's process: started when first needed, used in parallel, replaced when they die.

A request goes to an idle process; it has the whole process until it is answered. A process that dies or hangs takes only that
request with it, which fails as `ToolchainCrash` with the end of what the process wrote and, under ``EFFC_DUMP``, a file that
reproduces it.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from effc.compiler.ir import errors
from effc.compiler.ir.errors import LoweringError, ToolchainCrash
from effc.compiler.process import ProcessEnded, ProcessHangs, WorkerProcess

REQUEST_SECONDS = 300.0  # the slowest kernel measured takes a few seconds; this only ends what would never end
MAX_PROCESSES = 4

Request = tuple[str, Mapping[str, Any]]


class Toolchain:
    """A pool of at most ``size`` processes that run ``command``."""

    def __init__(self, size: int | None = None, command: Sequence[str] | None = None) -> None:
        self.size = size or min(os.cpu_count() or 1, MAX_PROCESSES)
        self.command = list(command or (sys.executable, "-P", "-m", "effc.compiler.worker"))
        self.started = 0
        self._idle: list[WorkerProcess] = []
        self._busy: set[WorkerProcess] = set()
        self._changed = threading.Condition()

    # -- requests ---------------------------------------------------------------------------------------------------
    def request(self, kind: str, payload: Mapping[str, Any], timeout: float = REQUEST_SECONDS) -> Any:
        """The result of one request. LoweringError: the stage failed. ToolchainCrash: its process died, or took too long."""
        return self._answer(kind, _line(kind, payload), timeout)

    def _answer(self, kind: str, line: bytes, timeout: float = REQUEST_SECONDS) -> Any:
        while True:
            worker = self._take()
            reply = None
            try:
                reply = worker.exchange(line, timeout)
            except ProcessEnded:
                if worker.left_when_idle():
                    continue  # it ended itself just as it was chosen; the request was not begun
                raise ToolchainCrash(self._crash_text(kind, line, worker, _ending(worker.returncode()))) from None
            except ProcessHangs:
                text = f"did not answer within {timeout:g} s"
                raise ToolchainCrash(self._crash_text(kind, line, worker, text)) from None
            finally:
                self._give_back(worker, usable=reply is not None)
            return _result(kind, json.loads(reply), line)

    def map(self, requests: Sequence[Request]) -> list[Any]:
        """The results of many requests, which run at the same time; the first failure in order is raised, after all ended.

        The longest begin first, as they take the longest: none is left to one process at the end.
        """
        if len(requests) < 2:
            return [self.request(*request) for request in requests]
        lines = [_line(*request) for request in requests]
        order = sorted(range(len(lines)), key=lambda i: -len(lines[i]))
        with ThreadPoolExecutor(min(self.size, len(requests))) as threads:
            pending = {i: threads.submit(self._answer, requests[i][0], lines[i]) for i in order}
        return [pending[i].result() for i in range(len(lines))]

    def warm(self) -> None:
        """Start every process now, so that they are ready for the requests to come; does not wait for them."""
        with self._changed:
            for _ in range(self.size - len(self._idle) - len(self._busy)):
                self._idle.append(self._start())

    # -- processes --------------------------------------------------------------------------------------------------
    def _take(self) -> WorkerProcess:
        with self._changed:
            while True:
                while self._idle:
                    worker = self._idle.pop()
                    if worker.returncode() is None:
                        self._busy.add(worker)
                        return worker
                    worker.end()
                if len(self._busy) < self.size:
                    worker = self._start()
                    self._busy.add(worker)
                    return worker
                self._changed.wait()

    def _start(self) -> WorkerProcess:
        self.started += 1
        try:
            return WorkerProcess(self.command)
        except OSError as err:
            raise ToolchainCrash(f"the toolchain process {self.command[0]!r} does not start: {err.strerror}") from err

    def _give_back(self, worker: WorkerProcess, *, usable: bool) -> None:
        if not usable:
            worker.end()
        with self._changed:
            self._busy.discard(worker)
            if usable:
                self._idle.append(worker)
            self._changed.notify()

    def close(self) -> None:
        """End every process; a request in progress fails."""
        with self._changed:
            for worker in (*self._idle, *self._busy):
                worker.end()
            self._idle.clear()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's processes without ending them."""
        for worker in (*self._idle, *self._busy):
            worker.abandon()

    def _crash_text(self, kind: str, line: bytes, worker: WorkerProcess, what: str) -> str:
        said = worker.stderr_end().strip()
        return (
            f"the toolchain process {what} in stage '{kind}'; the region runs in eager.{_dump(kind, line)}"
            f"{f' It wrote last: {said}' if said else ''}"
        )


def _line(kind: str, payload: Mapping[str, Any]) -> bytes:
    return json.dumps({"kind": kind, "payload": payload}).encode()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def _result(kind: str, reply: Mapping[str, Any], line: bytes) -> Any:
    if "error" not in reply:
        return reply["result"]
    error, dumped = reply["error"], _dump(kind, line)
    own = getattr(errors, error["type"], None)
    if isinstance(own, type) and issubclass(own, errors.EffcError):
        raise own(f"{error['message']}{dumped}")
    raise LoweringError(
        f"stage '{kind}' failed with {error['type']}: {error['message']}.{dumped}\n{error['traceback']}"
    )


def _dump(kind: str, line: bytes) -> str:
    """Keep a failed request as a file; the sentence that says so, or how to have one."""
    folder = os.environ.get("EFFC_DUMP")
    if not folder:
        return " Set EFFC_DUMP to a folder to keep a file that reproduces it."
    path = Path(folder) / f"{kind}-{hashlib.sha256(line).hexdigest()[:16]}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(line + b"\n")
    except OSError as err:
        return f" The reproducer {path} could not be written ({err.strerror})."
    return f" Reproduce it by: python -P -m effc.compiler.worker < {path}"


_shared: Toolchain | None = None
_shared_lock = threading.Lock()


def toolchain() -> Toolchain:
    """This process's pool."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Toolchain()
            atexit.register(_shared.close)
        return _shared


def _after_fork() -> None:
    global _shared, _shared_lock
    _shared_lock = threading.Lock()
    if _shared is not None:
        _shared.abandon()
        atexit.unregister(_shared.close)
        _shared = None


os.register_at_fork(after_in_child=_after_fork)
