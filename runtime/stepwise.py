"""Running a program call by call from Python: for torch's profiler, and for looking at every kernel's operands."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch

from effc.compiler.ir.program import Call, Program
from effc.compiler.ir.slots import HEADER_SLOTS, Layout
from effc.compiler.ir.spec import DIVISION_BY_ZERO, ITEM_SIZE, KernelSpec
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.sizes import evaluator


@dataclass(frozen=True)
class Step:
    """One kernel call about to be made, or just made. ``pointers``, ``symbols``: the values it is called with."""

    number: int
    call: Call
    kernel: KernelSpec
    pointers: tuple[int, ...]
    symbols: tuple[int, ...]

    def operand(self, index: int) -> torch.Tensor:
        """The memory of an operand as a 1-D tensor; it is the memory itself, so copy what must outlive the call."""
        operand = self.kernel.operands[index]
        size = operand.size.evaluate(dict(zip(self.kernel.symbols, self.symbols, strict=True)))
        dtype = TORCH_DTYPES[operand.dtype]
        if size <= 0:
            return torch.empty(0, dtype=dtype)
        memory = (ctypes.c_char * (size * ITEM_SIZE[operand.dtype])).from_address(self.pointers[index])
        return torch.frombuffer(memory, dtype=dtype)


class Observer(Protocol):
    """Sees every call of a stepwise run; an exception that it raises ends the run."""

    def before(self, step: Step) -> None: ...

    def after(self, step: Step) -> None: ...


class Stepper:
    """Makes the calls of a program one at a time, from the same slots as the native driver."""

    def __init__(self, program: Program, layout: Layout, kernels: Mapping[str, int]) -> None:
        self.program, self.layout = program, layout
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._functions = [function(kernels[k.digest()]) for k in program.kernels]
        offsets = [p.offset for c in program.calls for p in c.pointers]
        values = [s for c in program.calls for s in c.symbols]
        self._evaluate = evaluator([*offsets, *values], program.symbols)
        self._offset_count = len(offsets)

    def run(self, slots: ctypes.Array[ctypes.c_int64], error: int, observer: Observer | None) -> None:
        """``slots``: filled as for the driver; ``error``: index of the error cell in it. Stops after a failed check."""
        flat = self._evaluate(*slots[self.layout.symbols : self.layout.count])
        offsets, values = iter(flat[: self._offset_count]), iter(flat[self._offset_count :])
        for number, call in enumerate(self.program.calls):
            pointers = tuple(slots[self.layout.base(p.base, p.index)] + next(offsets) for p in call.pointers)
            symbols = tuple(next(values) for _ in call.symbols)
            frame = (ctypes.c_int64 * (HEADER_SLOTS + len(pointers) + len(symbols)))(
                *slots[:HEADER_SLOTS], *pointers, *symbols
            )
            function, address = self._functions[call.kernel], ctypes.addressof(frame)
            if observer is None:
                with torch.profiler.record_function(_label(call)):
                    function(address)
            else:  # nothing but the call between the two: an observer may time it
                step = Step(number, call, self.program.kernels[call.kernel], pointers, symbols)
                observer.before(step)
                function(address)
                if not slots[error]:
                    observer.after(step)
            if slots[error]:
                slots[error] |= (number + 1) << 32
                return


def raise_failed_check(program: Program, code: int) -> NoReturn:
    """IndexError for an error cell: the message of the failed ``check``, and the user's line.

    A division of integers by zero is eager's RuntimeError.
    """
    call, check = (code >> 32) - 1, (code & 0xFFFFFFFF) - 1
    if not 0 <= call < len(program.calls):
        raise IndexError("an index is out of range")
    where = program.calls[call].location
    body = program.kernels[program.calls[call].kernel].body
    message: Any = body[check].get("message") if check < len(body) else None
    error = RuntimeError if message == DIVISION_BY_ZERO else IndexError
    raise error(f"{message or 'index out of range'}{f' (at {where})' if where else ''}")


def _label(call: Call) -> str:
    return f"effc::{call.name or 'kernel'}{f' [{call.location}]' if call.location else ''}"
