"""Bounds checks of kernels that nobody waits for: a failed one is seen by a later call, as CUDA's own assertions are.

A kernel writes into its call's error cell, which lies in the host's memory, so reading it asks the GPU nothing and a call can be
captured into a CUDA graph. An index that fails a check is moved into the tensor by the kernel: what it computes is wrong, no
other memory is touched.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import warnings
import weakref

import numpy as np
import torch

from effc.compiler.ir.program import Program
from effc.runtime.gpu.device import Device
from effc.runtime.stepwise import raise_failed_check

#: Of all programs; replaced, never changed, so that any thread may go through it.
_live: tuple[weakref.ref[ErrorCells], ...] = ()
_lock = threading.Lock()
#: Memory of all cells, for ever: a kernel that still runs, or a CUDA graph, may write into those of a program that is gone.
_kept: list[torch.Tensor] = []


class ErrorCells:
    """A cell for each call of ``program``, of which some checks something."""

    def __init__(self, program: Program, device: Device) -> None:
        self._program, self._device = program, device
        self._memory = device.host_cells(len(program.calls))
        self._cells = self._memory.numpy()
        global _live
        with _lock:
            _kept.append(self._memory)
            _live = (*(known for known in _live if known() is not None), weakref.ref(self))

    @property
    def address(self) -> int:
        return self._memory.data_ptr()

    def wait(self) -> None:
        """Until all calls have ended."""
        self._device.wait()

    def raise_failed(self, when: str = ", in an earlier call") -> None:
        """IndexError (RuntimeError for a division by zero) where a call that has ended failed a check; once for each. ``when``: that was,
        for the message.
        """
        if self._cells.any():
            call = int(np.flatnonzero(self._cells)[0])
            code = (call + 1) << 32 | int(self._cells[call])
            self._cells[:] = 0
            try:
                raise_failed_check(self._program, code)
            except (IndexError, RuntimeError) as error:
                raise type(error)(f"{error}{when} on {self._device.name}") from None


def raise_failed() -> None:
    """As `ErrorCells.raise_failed`, of all programs."""
    for known in _live:
        if (cells := known()) is not None:
            cells.raise_failed()


def _report() -> None:
    """At the end of the process nobody is left to raise for."""
    for known in _live:
        if (cells := known()) is None:
            continue
        with contextlib.suppress(RuntimeError):  # CUDA's own errors are not for here
            cells.wait()
        try:
            cells.raise_failed()
        except (IndexError, RuntimeError) as error:
            warnings.warn(f"a model that effc compiled computed something wrong: {error}", RuntimeWarning, stacklevel=1)


def _after_fork() -> None:
    """A child has neither the GPU nor, it may be, the memory that the driver pinned."""
    global _live, _lock
    _live, _lock = (), threading.Lock()


atexit.register(_report)
os.register_at_fork(after_in_child=_after_fork)
