"""An object in a process of its own: a crash, its memory and its threads are its own too."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from effc.compiler.ir.errors import EffcError


class RemoteError(EffcError):
    """The call raised, or its process ended or gave no answer; the text says which."""


class Remote:
    """``make()`` runs in a new process with ``environment`` added to ours; ``call`` runs a method of what it returned.

    What the process prints goes into ``log``. ``make`` is unpickled after the environment is set, so that the libraries which
    it imports see it.
    """

    def __init__(self, make: Callable[[], Any], environment: Mapping[str, str], log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, dict(environment), log))
        self._process.start()
        theirs.close()
        self._pipe.send(make)

    def call(self, method: str, *args: Any, timeout: float) -> Any:
        """``timeout``: seconds; a process that is silent for longer is ended."""
        try:
            self._pipe.send((method, args))
            if not self._pipe.poll(timeout):
                self.close(kill=True)
                raise RemoteError(f"no answer in {timeout:g} s")
            answer, failure = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(1.0)
            raise RemoteError(f"its process ended with status {self._process.exitcode}") from error
        if failure is not None:
            raise RemoteError(failure)
        return answer

    def close(self, kill: bool = False) -> None:
        """End the process; by force where ``kill``, or where it does not end itself."""
        self._pipe.close()
        if kill:
            self._process.kill()
        self._process.join(10.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, environment: Mapping[str, str], log: Path) -> None:
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        make = pipe.recv()
        served: Any = None
        while True:
            method, args = pipe.recv()
            try:
                if served is None:
                    served = make()
                pipe.send((getattr(served, method)(*args), None))
            except Exception as error:  # whatever a rival raises is its result
                traceback.print_exc()
                text = str(error).strip().splitlines()
                pipe.send((None, f"{type(error).__name__}: {text[0][:200] if text else ''}"))
    except (EOFError, KeyboardInterrupt):
        return
