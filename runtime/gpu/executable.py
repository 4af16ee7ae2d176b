"""``GpuExecutable``: a program with its cubins, callable on tensors of one device.

A call launches kernels on torch's current stream and waits for nothing, so it can be captured into a CUDA graph; the arena and the
results come from torch's caching allocator. What its bounds checks find, a later call raises (`checks`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch.autograd.graph import increment_version

from effc.compiler.ir.errors import DeviceError
from effc.compiler.ir.program import Program
from effc.compiler.ir.slots import Layout
from effc.runtime.conform import conforming
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.gpu.checks import ErrorCells, raise_failed
from effc.runtime.gpu.code import SpecCode
from effc.runtime.gpu.device import Device
from effc.runtime.gpu.launches import ALIGNMENT, Launches, Table
from effc.runtime.guard import Unchanged
from effc.runtime.sizes import SizeTable
from effc.runtime.weights import State, Weights

_KEPT = 1024  # tables of launches, each for one set of sizes; uses of derived weights


class GpuExecutable:
    """Runs ``program`` on ``device``; ``code`` is that of its kernels, in order. ``prepare``: the executable of ``program.prepare``.

    Calls may come from any threads; each launches all of its kernels before the next one does. DeviceError: the driver refuses a kernel.
    """

    def __init__(
        self,
        program: Program,
        code: Sequence[SpecCode],
        device: Device,
        unchanged: Unchanged,
        prepare: GpuExecutable | None = None,
    ) -> None:
        self.program, self.code, self.device, self.unchanged = program, code, device, unchanged
        self.layout = Layout.of(program)
        checks = any(i.op == "check" for spec in program.kernels for i in spec.body)
        self._cells = ErrorCells(program, device) if checks else None
        handles: list[list[int]] = [[] for _ in code]
        loaded = list[int]()  # grows until all are: what is refused releases those before it
        self._release = weakref.finalize(self, device.retire, loaded)
        with device.current():
            for each, spec in zip(handles, code, strict=True):
                for one in spec.launches:
                    each.append(device.load(one.image, one.name, one.shared))
                    loaded.append(each[-1])
        cells = self._cells.address if self._cells is not None else 0
        self._launches = Launches(program, code, handles, self.layout, cells)
        self._tables: dict[tuple[int, ...], Table] = {}
        self._sizes = SizeTable(program)
        self.weights = Weights(program, prepare, unchanged) if program.derived else None
        guarded = set(self.weights.inputs) if self.weights is not None else set()
        self._moving = [i for i in range(len(program.inputs)) if i not in guarded]
        self._mutated = sorted({o.mutates for o in program.outputs if o.mutates is not None})
        self._fresh = [
            (self.layout.outputs + k, TORCH_DTYPES[o.tensor.dtype])
            for k, o in enumerate(program.outputs)
            if o.mutates is None
        ]
        self._lock = threading.Lock()
        self._slots = np.zeros(self.layout.count, np.uint64)
        self._held: set[tuple[int, int]] = set()  # derived weights, by serial, and streams that they are held for
        self._serial = 0  # of the weights whose addresses stand in the slots
        self._unaligned: list[int] = []  # inputs that are among those weights

    @property
    def notes(self) -> list[str]:
        """For the report."""
        return [self.weights.note] if self.weights is not None and self.weights.note else []

    def __call__(
        self, symbols: Sequence[int], tensors: Sequence[torch.Tensor], *, validate: bool = False
    ) -> list[torch.Tensor]:
        """The results that are not mutations, in order; mutated inputs are updated in place. ``validate``: copy inputs of another
        placement. DeviceError: the driver refuses a launch. IndexError: a bounds check of an earlier call failed.
        """
        key = tuple(symbols)
        if validate:
            with conforming(self._sizes.given(key), tensors, self._mutated) as placed:
                return self(key, placed)
        raise_failed()
        with self._lock, self.device.current():
            capturing = self.device.is_capturing()
            if capturing:
                self._release.detach()  # a graph may launch the kernels when this is gone
            table = self._tables.get(key) or self._plan(key)
            state = self._state(self.weights, tensors, capturing) if self.weights is not None else None
            results, arena = self._allocated(key, table.arena_bytes)
            held = self._place(tensors, state, results, arena)
            table.bind(self._slots)
            refusal = self.device.launch(table.address, len(table.calls))
        if refusal is not None:
            call = self.program.calls[table.calls[refusal.index]]
            raise DeviceError(f"the GPU's driver does not launch {call.name} at {call.location}: {refusal.why}")
        for i in self._mutated:
            if i in held:
                tensors[i].copy_(held[i])
        if self._mutated:
            increment_version([tensors[i] for i in self._mutated])
        return results

    def refresh(self) -> None:
        """Derive the weights anew at the next call, whatever the guard says."""
        if self.weights is not None:
            self.weights.clear()

    def trim(self) -> None:
        """Nothing is held between calls."""

    def raise_failed(self) -> None:
        """Behind a call: wait for the GPU, and raise what its checks found, or those of other programs before."""
        self.device.wait()
        if self._cells is not None:
            self._cells.raise_failed(when="")
        raise_failed()

    # -- a call -------------------------------------------------------------------------------------------------------
    def _state(self, weights: Weights, tensors: Sequence[torch.Tensor], capturing: bool) -> State:
        """The derived weights. The next call may be on another stream than the one that derives them, which nobody would wait for; one of
        another thread waits for the lock. RuntimeError: CUDA's own, also where a graph is being captured.
        """
        before = weights.derivations
        try:
            state = weights.current(tensors)  # which itself waits where it looks for zeros
            if weights.derivations != before:
                self.device.wait()
        except RuntimeError as error:
            weights.clear()  # what a graph captured has not been computed
            if capturing:
                error.add_note(
                    "effc derives weights in the first call, and in the next one after they change, which no CUDA graph can hold: call "
                    "the model once before it is captured"
                )
            raise
        self._hold(state)
        return state

    def _hold(self, state: State) -> None:
        """Once for each stream: derived weights may be freed while kernels there still read them, and were allocated on another."""
        use = state.serial, self.device.stream()
        if use not in self._held:
            if len(self._held) >= _KEPT:
                self._held.clear()
            self._held.add(use)
            self.device.hold(state.derived)

    def _allocated(self, key: tuple[int, ...], arena_bytes: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        try:
            results = [
                self.device.empty(size, stride, dtype)
                for (_, dtype), (size, stride) in zip(self._fresh, self._sizes[key].outputs, strict=True)
            ]
            return results, self.device.empty((arena_bytes,), (1,), torch.uint8)
        except torch.OutOfMemoryError as error:
            error.add_note(
                f"effc asked for the results of a region and {arena_bytes / 2**20:.1f} MiB for what it computes in between; "
                "a smaller batch needs less"
            )
            raise

    def _place(
        self,
        tensors: Sequence[torch.Tensor],
        state: State | None,
        results: Sequence[torch.Tensor],
        arena: torch.Tensor,
    ) -> dict[int, torch.Tensor]:
        """Write all addresses into the slots; the copies of inputs that are not aligned, by number."""
        slots, layout = self._slots, self.layout
        if state is not None and state.serial != self._serial and self.weights is not None:
            self._serial = state.serial
            for slot, address in state.pointers:
                slots[slot] = address
            self._unaligned = [i for i in self.weights.inputs if tensors[i].data_ptr() % ALIGNMENT]
        held: dict[int, torch.Tensor] = {}
        for i in (*self._moving, *self._unaligned):
            address = tensors[i].data_ptr()
            if address % ALIGNMENT:
                held[i] = self._aligned(tensors[i])
                address = held[i].data_ptr()
            slots[layout.inputs + i] = address
        for (slot, _), result in zip(self._fresh, results, strict=True):
            slots[slot] = result.data_ptr()
        for k, output in enumerate(self.program.outputs):
            if output.mutates is not None:
                slots[layout.outputs + k] = slots[layout.inputs + output.mutates]
        slots[layout.arena] = arena.data_ptr()
        return held

    def _aligned(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy at an aligned address, of the same strides."""
        steps = ((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        span = 1 + sum(steps) if tensor.numel() else 0
        copy = self.device.empty((span,), (1,), tensor.dtype)
        copy.copy_(tensor.detach().as_strided((span,), (1,)))
        return copy.as_strided(tensor.shape, tensor.stride(), 0)

    def _plan(self, symbols: tuple[int, ...]) -> Table:
        while len(self._tables) >= _KEPT:
            del self._tables[next(iter(self._tables))]
        table = self._tables[symbols] = self._launches.table(symbols)
        return table
