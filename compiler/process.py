"""One toolchain process and the pipes to it."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence

_STDERR_END = 2000  # bytes of a failed process's last words that an error repeats


class ProcessEnded(Exception):
    """The process ended before it answered."""


class ProcessHangs(Exception):
    """The process did not answer in time."""


class WorkerProcess:
    """Starts ``command``; its standard error goes to a file without a name, to be read when something fails."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0, close_fds=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        os.set_blocking(self._in.fileno(), False)

    def exchange(self, line: bytes, timeout: float) -> bytes:
        """Send one line, receive one, both without their ends. ProcessEnded, ProcessHangs."""
        os.ftruncate(self._errors.fileno(), 0)
        left, received, deadline = memoryview(line + b"\n"), bytearray(), time.monotonic() + timeout
        while not received.endswith(b"\n"):
            remaining = deadline - time.monotonic()
            writing = [self._in] if left else []
            readable, writable, _ = select.select([self._out], writing, [], max(remaining, 0))
            if readable:
                data = os.read(self._out.fileno(), 1 << 20)
                if not data:
                    self._process.wait()
                    raise ProcessEnded
                received += data
            elif writable:
                try:
                    left = left[os.write(self._in.fileno(), left) :]
                except BrokenPipeError:
                    self._process.wait()
                    raise ProcessEnded from None
            elif remaining <= 0:
                raise ProcessHangs
        return bytes(received[:-1])

    def returncode(self) -> int | None:
        return self._process.poll()

    def left_when_idle(self) -> bool:
        """Whether it ended in order: by itself, and without a word."""
        return self.returncode() == 0 and not self.stderr_end()

    def stderr_end(self) -> str:
        """The last of what it wrote to standard error."""
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), _STDERR_END, max(size - _STDERR_END, 0)).decode(errors="replace")

    def end(self) -> None:
        """Kill it, and free what belongs to it."""
        self._process.kill()
        self._process.wait()
        for file in (self._in, self._out):
            file.close()

    def abandon(self) -> None:
        """In a forked child: close our copies of the pipes, so that the process sees when its parent ends."""
        for file in (self._in, self._out):
            file.close()
        self._process.returncode = 0  # it is not our child: never wait for it
