"""A worker process that answers in JSON lines: a crash or a hang costs one request, not the run."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any


class WorkerDied(Exception):
    """The process ended, or gave no line in time; the next request starts a new one."""


class Worker:
    """Runs ``script`` with ``arguments``; it reads JSON lines and answers each with lines, the last ``{"done":
    true}``.
    """

    def __init__(self, script: Path, *arguments: str) -> None:
        self._command = [sys.executable, "-P", str(script), *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._errors: IO[bytes] | None = None
        self._closed = False

    def answers(self, request: dict[str, Any], timeout: float) -> Iterator[dict[str, Any]]:
        """The answers one by one, each within ``timeout`` s; raises ``WorkerDied``."""
        process = self._start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then no answer comes either
            process.stdin.write(json.dumps(request).encode() + b"\n")
        while True:
            line = self._line(timeout)
            if line is None:
                raise WorkerDied(self._end(timeout))
            answer: dict[str, Any] = json.loads(line)
            if answer.get("done"):
                return
            yield answer

    def stop(self) -> None:
        """End the process and its children."""
        process, self._process, self._rest = self._process, None, b""
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _end(self, timeout: float) -> str:
        """Stop, and say why there was no answer: the time, or the exit code and the last line that the process wrote."""
        process = self._process
        assert process is not None
        assert self._errors is not None
        hung = f"no answer in {timeout:g} s"
        if not self._closed:
            self.stop()
            return hung
        with contextlib.suppress(subprocess.TimeoutExpired):  # stdout closes before the process is gone
            process.wait(timeout)
        code = process.poll()
        self.stop()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return hung if code is None else f"process ended with {code}: {lines[-1] if lines else ''}"

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._errors, self._closed = tempfile.TemporaryFile(), False  # noqa: SIM115  (lives as long as the process)
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # so that its own children end with it
                env={"OMP_NUM_THREADS": "1"} | os.environ,
                bufsize=0,
            )
        return self._process

    def _line(self, timeout: float) -> bytes | None:
        """The next line of the worker, or None where none comes."""
        assert self._process is not None
        assert self._process.stdout is not None
        out, end = self._process.stdout.fileno(), time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, end - time.monotonic())):
                    return None
                chunk = os.read(out, 65536)
                if not chunk:
                    self._closed = True
                    return None
                self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        return line


def serve(answer: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]) -> None:
    """The worker's side: ``answer(request)`` yields dicts for each request on stdin. What the code prints goes to
    stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        for reply in answer(json.loads(line)):
            print(json.dumps(reply), file=answers, flush=True)
        print(json.dumps({"done": True}), file=answers, flush=True)
