"""Worker processes for the sweep: a crash or a hang costs one sample, not the sweep."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAIN = Path(__file__).resolve().parent / "worker.py"


class Worker:
    """A process that checks samples one by one and answers in JSON lines."""

    def __init__(self, backend: str, limit: int) -> None:
        self._arguments = [sys.executable, "-P", str(_MAIN), backend, str(limit)]
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, name: str, timeout: float) -> Iterator[dict[str, Any]]:
        """A verdict for each sample of the op, in order; a sample on which the process dies or exceeds ``timeout`` s
        is ``crash``.
        """
        index = 0
        while True:
            process = self._start()
            assert process.stdin is not None
            process.stdin.write(json.dumps({"op": name, "first": index}).encode() + b"\n")
            process.stdin.flush()
            while True:
                line = self._line(timeout)
                if line is None:
                    code = self.stop()
                    yield {"status": "crash", "detail": f"hung over {timeout:g} s" if code is None else f"exit {code}"}
                    index += 1
                    break
                answer = json.loads(line)
                if answer.get("done"):
                    return
                yield answer
                index += 1

    def stop(self) -> int | None:
        """End the process and its children; its exit code if it had ended by itself, else None."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):  # stdout closes a moment before the process is reaped
            process.wait(0.2)
        code = process.poll()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return code

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
            self._process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
                bufsize=0,
            )
        return self._process

    def _line(self, timeout: float) -> bytes | None:
        """The next line of the worker, or None where none comes."""
        assert self._process is not None
        assert self._process.stdout is not None
        out, line, end = self._process.stdout, b"", time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    return None
                chunk = os.read(out.fileno(), 1)
                if not chunk:
                    return None
                line += chunk
        return line
