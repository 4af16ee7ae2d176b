"""Calling a kernel many times with nothing in between: a loop in native code over prepared frames of slots."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from effc.compiler.build import machine_code
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.toolchain import toolchain
from effc.runtime.elf import LoadedObject, load
from effc.runtime.threads import threads as thread_pool

#: ``effc_repeat(kernel, frames, count)`` calls the kernel with each of the frames in turn.
_LOOP = """\
module {
  llvm.func @effc_repeat(%kernel: i64, %frames: i64, %count: i64) {
    %zero = llvm.mlir.constant(0 : i64) : i64
    %one = llvm.mlir.constant(1 : i64) : i64
    %code = llvm.inttoptr %kernel : i64 to !llvm.ptr
    %list = llvm.inttoptr %frames : i64 to !llvm.ptr
    llvm.br ^loop(%zero : i64)
  ^loop(%i: i64):
    %place = llvm.getelementptr %list[%i] : (!llvm.ptr, i64) -> !llvm.ptr, !llvm.ptr
    %frame = llvm.load %place : !llvm.ptr -> !llvm.ptr
    llvm.call %code(%frame) : !llvm.ptr, (!llvm.ptr) -> ()
    %next = llvm.add %i, %one : i64
    %more = llvm.icmp "slt" %next, %count : i64
    llvm.cond_br %more, ^loop(%next : i64), ^end
  ^end:
    llvm.return
  }
}
"""


@dataclass
class Cursor:
    """How many bytes of weights have been read by all kernels that share their memory: each goes on where the one before it stopped, so
    that none finds in a cache what another has just read.
    """

    read: int = 0


@dataclass
class Timed:
    """A kernel, ready to be timed: ``run(calls)`` in seconds. ``operands``: the memory of each, several where calls take turns.
    OptionError: there are no threads.
    """

    code: LoadedObject
    spec: KernelSpec
    operands: Sequence[Sequence[torch.Tensor]]
    symbols: Sequence[int]
    threads: int
    cursor: Cursor

    def __post_init__(self) -> None:
        pool = thread_pool()
        if self.threads > 1 and not pool.gomp_parallel:
            raise OptionError(f"{self.threads} threads are asked for, but kernels run on one here: {pool.why_serial()}")
        self._error = ctypes.c_int64(0)
        header = (pool.gomp_parallel, pool.thread_num, ctypes.addressof(self._error), self.threads)
        longest = max(self.operands, key=len)
        self._bytes = longest[0].numel() * longest[0].element_size()
        frames = []
        for turn in range(len(longest)):
            pointers = [copies[turn % len(copies)].data_ptr() for copies in self.operands]
            slots = (*header, *pointers, *self.symbols)
            frames.append((ctypes.c_int64 * len(slots))(*slots))
        self._frames = frames
        self._kernel = self.code.symbols[f"k_{self.spec.digest()}"]
        self._lists: dict[int, ctypes.Array[ctypes.c_int64]] = {}

    def run(self, calls: int) -> float:
        """IndexError: a check of the kernel failed."""
        first = self.cursor.read // max(self._bytes, 1) % len(self._frames)
        self.cursor.read += calls * self._bytes
        repeat, frames = _repeat(), ctypes.addressof(self._list(calls)) + 8 * first
        started = time.perf_counter()
        repeat(self._kernel, frames, calls)
        seconds = time.perf_counter() - started
        if self._error.value:
            raise IndexError("an index of the operands is out of range")
        return seconds

    def _list(self, calls: int) -> ctypes.Array[ctypes.c_int64]:
        """Addresses of so many frames in turn, from whichever of them on."""
        known = self._lists.get(calls)
        if known is None:
            turns = len(self._frames)
            addresses = [ctypes.addressof(self._frames[i % turns]) for i in range(calls + turns)]
            known = self._lists[calls] = (ctypes.c_int64 * len(addresses))(*addresses)
        return known


class _Repeat:
    """The loop in this process."""

    def __init__(self) -> None:
        self._code = load(machine_code(_LOOP, Target.host(), toolchain()))
        self._native = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(self._code.symbols["effc_repeat"])

    def __call__(self, kernel: int, frames: int, count: int) -> None:
        self._native(kernel, frames, count)


@lru_cache(maxsize=1)
def _repeat() -> _Repeat:
    return _Repeat()
