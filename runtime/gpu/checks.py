"""Bounds checks of kernels that nobody waits for: a failed one is seen by a later call, as CUDA's own assertions are.

A kernel writes into its call's error cell, which lies in the host's memory, so reading it asks the GPU nothing and a call can be
captured into a CUDA graph. An index that fails a check is moved into the tensor by the kernel: what it computes is wrong, no
other memory is touched.
"""

from __future__ import annotations

import atexit
import warnings
import weakref

import numpy as np

from effc.compiler.ir.program import Program
from effc.runtime.gpu.device import Device
from effc.runtime.stepwise import raise_failed_check

#: Of all programs; replaced, never changed, so that any thread may go through it.
_live: tuple[weakref.ref[ErrorCells], ...] = ()


class ErrorCells:
    """A cell for each call of ``program``, of which some checks something."""

    def __init__(self, program: Program, device: Device) -> None:
        self._program, self._device = program, device
        self._memory = device.host_cells(len(program.calls))
        self._cells = self._memory.numpy()
        global _live
        _live = (*(known for known in _live if known() is not None), weakref.ref(self))

    @property
    def address(self) -> int:
        return self._memory.data_ptr()

    def raise_failed(self) -> None:
        """IndexError (RuntimeError for a division by zero) where a call that has ended failed a check; once for each."""
        if self._cells.any():
            call = int(np.flatnonzero(self._cells)[0])
            code = (call + 1) << 32 | int(self._cells[call])
            self._cells[:] = 0
            try:
                raise_failed_check(self._program, code)
            except (IndexError, RuntimeError) as error:
                raise type(error)(f"{error}, in an earlier call on {self._device.name}") from None


def raise_failed() -> None:
    """As `ErrorCells.raise_failed`, of all programs."""
    for known in _live:
        if (cells := known()) is not None:
            cells.raise_failed()


def _report() -> None:
    """At the end of the process nobody is left to raise for."""
    for known in _live:
        try:
            if (cells := known()) is not None:
                cells.raise_failed()
        except (IndexError, RuntimeError) as error:
            warnings.warn(f"a model that effc compiled computed something wrong: {error}", RuntimeWarning, stacklevel=1)


atexit.register(_report)
