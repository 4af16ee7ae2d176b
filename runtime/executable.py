"""``Executable``: a program with its code, callable on tensors.

A call takes a *frame* from a pool (the slot array, the error cell and the arena: one for each concurrent call), writes the slots
that changed, and makes one native call, for which ctypes releases the GIL. Results come from torch's allocator.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch._C._autograd import _profiler_enabled
from torch._C._dynamo.guards import _empty_strided_cpu  # type: ignore[attr-defined]  # what Inductor's own code calls
from torch.autograd.graph import increment_version

from effc.compiler.ir.program import Program
from effc.compiler.ir.slots import ERROR_SLOT, GOMP_PARALLEL_SLOT, THREAD_NUM_SLOT, THREADS_SLOT, Layout
from effc.runtime.conform import check_inputs, conforming
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.elf import load
from effc.runtime.guard import Unchanged
from effc.runtime.pages import empty_bytes, prefer_huge
from effc.runtime.sizes import Sizes, SizeTable
from effc.runtime.stepwise import Observer, Stepper, raise_failed_check
from effc.runtime.threads import threads
from effc.runtime.weights import State, Weights


class Frame:
    """What one call at a time uses. ``address``: of the slots; the error cell is the word after them."""

    __slots__ = ("address", "arena", "error", "serial", "sizes", "slots", "symbols")

    def __init__(self, slot_count: int) -> None:
        self.slots = (ctypes.c_int64 * (slot_count + 1))()
        self.address = ctypes.addressof(self.slots)
        self.error = slot_count
        self.slots[ERROR_SLOT] = self.address + 8 * slot_count
        self.slots[GOMP_PARALLEL_SLOT] = threads().gomp_parallel
        self.slots[THREAD_NUM_SLOT] = threads().thread_num
        self.arena = torch.empty(0, dtype=torch.uint8)
        self.symbols: tuple[int, ...] | None = None
        self.sizes: Sizes
        self.serial = 0  # of the weights whose addresses stand in the slots


class Executable:
    """Runs ``program``; ``objects`` are the code of its kernels, in order, ``driver`` that of `emit_driver`.

    ``prepare`` is the executable of ``program.prepare``. Calls may come from any threads at once.
    """

    def __init__(
        self, program: Program, objects: Sequence[bytes], driver: bytes, prepare: Executable | None = None
    ) -> None:
        self.program = program
        self.layout = Layout.of(program)
        self._loaded = [load(code) for code in objects]
        self.kernels = _kernel_addresses(program, [k.symbols for k in self._loaded])
        self._driver = load(driver, {f"k_{digest}": address for digest, address in self.kernels.items()})
        self._native = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._driver.symbols["effc_program"])
        self._sizes = SizeTable(program)
        #: The native comparison that guards over weights use; it lives as long as this.
        self.unchanged: Unchanged = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(
            self._driver.symbols["effc_unchanged"]
        )
        self.weights = Weights(program, prepare, self.unchanged) if program.derived else None
        guarded = set(self.weights.inputs) if self.weights is not None else set()
        self._moving = [(self.layout.inputs + i, i) for i in range(len(program.inputs)) if i not in guarded]
        self._moving += [
            (self.layout.outputs + k, o.mutates) for k, o in enumerate(program.outputs) if o.mutates is not None
        ]
        self._mutated = sorted({o.mutates for o in program.outputs if o.mutates is not None})
        fresh = [(k, o) for k, o in enumerate(program.outputs) if o.mutates is None]
        self._fresh = [(self.layout.outputs + k, TORCH_DTYPES[o.tensor.dtype]) for k, o in fresh]
        self._thread_count = threads().count
        self._frames: list[Frame] = []
        self._stepper = Stepper(program, self.layout, self.kernels)

    @property
    def notes(self) -> list[str]:
        """What a report should say: why kernels run serially, why the weights' guard is slow."""
        return [n for n in (threads().why_serial(), self.weights.note if self.weights is not None else "") if n]

    def __call__(
        self, symbols: Sequence[int], tensors: Sequence[torch.Tensor], *, check: bool = False, validate: bool = False
    ) -> list[torch.Tensor]:
        """The results that are not mutations, in order; mutated inputs are updated in place.

        ``check``: refuse inputs that are not as the program's (VerificationError). ``validate``: copy inputs of another placement, but
        for parameters. ``symbols`` is best a tuple. IndexError: a bounds check of the model failed.
        """
        if check:
            check_inputs(self.program, self._sizes.inputs(tuple(symbols)), tensors)
        if validate:
            with self._conforming(symbols, tensors) as placed:
                return self(symbols, placed)
        if _profiler_enabled():
            return self.run_stepwise(symbols, tensors, None)
        frame, results, state = self._enter(symbols, tensors)
        self._native(frame.address)
        self._leave(frame, tensors)
        del state  # until here it kept the derived weights, which another thread may have replaced meanwhile
        return results

    def run_stepwise(
        self,
        symbols: Sequence[int],
        tensors: Sequence[torch.Tensor],
        observer: Observer | None,
        *,
        validate: bool = False,
    ) -> list[torch.Tensor]:
        """As a call, but kernel by kernel, each in a ``record_function`` of its own and shown to ``observer``."""
        if validate:
            with self._conforming(symbols, tensors) as placed:
                return self.run_stepwise(symbols, placed, observer)
        frame, results, state = self._enter(symbols, tensors)
        self._stepper.run(frame.slots, frame.error, observer)
        self._leave(frame, tensors)
        del state
        return results

    def _conforming(
        self, symbols: Sequence[int], tensors: Sequence[torch.Tensor]
    ) -> AbstractContextManager[list[torch.Tensor]]:
        return conforming(self._sizes.given(tuple(symbols)), tensors, self._mutated)

    @property
    def counters(self) -> dict[str, int]:
        """How often weights were derived, for how many sets of parameters they are held, frames and bytes of arena."""
        return {
            "derivations": self.weights.derivations if self.weights is not None else 0,
            "weight_sets": len(self.weights) if self.weights is not None else 0,
            "frames": len(self._frames),
            "arena_bytes": sum(frame.arena.numel() for frame in self._frames),
        }

    def refresh(self) -> None:
        """Derive the weights anew at the next call, whatever the guard says."""
        if self.weights is not None:
            self.weights.clear()

    def trim(self) -> None:
        """Give back the arenas of calls that are not running."""
        self._frames.clear()

    # -- a call's two ends ------------------------------------------------------------------------------------------
    def _enter(
        self, symbols: Sequence[int], tensors: Sequence[torch.Tensor]
    ) -> tuple[Frame, list[torch.Tensor], State | None]:
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = Frame(self.layout.count)
        slots = frame.slots
        if frame.symbols is None or frame.symbols != symbols:
            self._resize(frame, tuple(symbols))
        state = None
        if self.weights is not None:
            state = self.weights.current(tensors)
            if frame.serial != state.serial:
                frame.serial = state.serial
                for slot, address in state.pointers:
                    slots[slot] = address
        slots[THREADS_SLOT] = self._thread_count()
        for slot, index in self._moving:
            slots[slot] = tensors[index].data_ptr()
        results = []
        for (slot, dtype), (size, stride) in zip(self._fresh, frame.sizes.outputs, strict=True):
            result = _empty_strided_cpu(size, stride, dtype)
            slots[slot] = result.data_ptr()
            results.append(result)
        for k, span in frame.sizes.large:
            prefer_huge(results[k].data_ptr(), span)
        return frame, results, state

    def _leave(self, frame: Frame, tensors: Sequence[torch.Tensor]) -> None:
        code = frame.slots[frame.error]
        if self._mutated:
            increment_version([tensors[i] for i in self._mutated])
        if code:
            frame.slots[frame.error] = 0
        self._frames.append(frame)
        if code:
            raise_failed_check(self.program, code)

    def _resize(self, frame: Frame, symbols: tuple[int, ...]) -> None:
        frame.sizes = self._sizes[symbols]
        frame.slots[self.layout.symbols : self.layout.count] = list(symbols)
        if frame.arena.numel() < frame.sizes.arena_bytes:
            frame.arena = empty_bytes(frame.sizes.arena_bytes)
            frame.slots[self.layout.arena] = frame.arena.data_ptr()
        frame.symbols = symbols


def _kernel_addresses(program: Program, symbols: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Address of the code of each kernel, by its digest."""
    digests = [kernel.digest() for kernel in program.kernels]
    if len(digests) != len(symbols):
        raise ValueError(f"{len(symbols)} objects for {len(digests)} kernels")
    return {digest: found[f"k_{digest}"] for digest, found in zip(digests, symbols, strict=True)}
