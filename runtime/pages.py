"""Memory in huge pages where the system has them: what kernels read again and again, and large results.

A kernel streams through packed weights that no cache holds: with pages of 4 KiB the translations of their addresses are themselves
looked up in memory, in a virtual machine twice over. In pages of 2 MiB BERT-base takes 0.982 of the time (0.974-0.995), GPT-2's prefill
0.985; one thread's 128 x 3072 x 768, with weights from memory, 0.97.

A result that the C library does not recycle is new memory in each call, whose pages the system clears one by one as a kernel first
writes them: 64 MiB take 4 ms in huge pages, 12 in ordinary ones, of which writing it is 2.5.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch._C._dynamo.guards import _empty_strided_cpu  # type: ignore[attr-defined]  # whatever the default device is

#: Bytes of a huge page on x86-64.
HUGE = 2 << 20
#: Bytes of memory that tensors share. With less than 32 MiB the C library recycles it; only what is touched is taken from the system.
_REGION = 8 * HUGE
#: Bytes from which on the C library maps each block anew: glibc's largest M_MMAP_THRESHOLD.
FRESH = 32 << 20
#: Smaller tensors have memory of their own.
_SMALL = 64 << 10
_LINE = 64


def empty_bytes(size: int) -> torch.Tensor:
    """At least ``size`` bytes, from the start of a huge page on where they fill one; else on a cache line."""
    alignment = HUGE if size >= HUGE else _LINE
    whole = -(-size // alignment) * alignment
    memory: torch.Tensor = _empty_strided_cpu((whole + alignment,), (1,), torch.uint8)
    skipped = -memory.data_ptr() % alignment
    aligned = memory[skipped : skipped + whole]
    if alignment == HUGE:
        prefer_huge(aligned.data_ptr(), whole)
    return aligned


def prefer_huge(address: int, size: int) -> None:
    """Ask for huge pages wherever they fit into these bytes and the rest of their first and last page."""
    advise = _madvise()
    if advise is not None:
        start = address & -mmap.PAGESIZE
        end = (address + size + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
        advise(start, end - start, mmap.MADV_HUGEPAGE)  # refused: ordinary pages serve as well


class Pages:
    """Memory for tensors that are made together and live as long as each other: each large one holds the memory of its neighbours."""

    def __init__(self) -> None:
        self._region = empty_bytes(0)
        self._used = 0

    def copy(self, view: torch.Tensor) -> torch.Tensor:
        """The values of ``view``, row-major."""
        return self._empty(view.shape, view.dtype).copy_(view)

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        size = prod(shape) * dtype.itemsize
        if size < _SMALL or size >= _REGION:
            return empty_bytes(size)[:size].view(dtype).view(shape)
        if self._used + size > self._region.numel():
            self._region, self._used = empty_bytes(_REGION), 0
        start = self._used
        self._used = -(-(start + size) // _LINE) * _LINE
        return self._region[start : start + size].view(dtype).view(shape)


@lru_cache(maxsize=1)
def _madvise() -> ctypes._NamedFuncPointer | None:
    """``madvise(address, length, advice)``; None where the system has no such advice."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
