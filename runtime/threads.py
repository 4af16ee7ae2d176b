"""Threads for kernels: torch's own OpenMP pool, called through the OpenMP runtime that torch has loaded.

A second OpenMP runtime would fight torch's for the cores, so none is ever loaded: where torch brings no usable runtime, kernels
run on the calling thread, and `Threads.why_serial` says why.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

_FORKED = "this process was forked, and OpenMP's threads do not survive a fork"
_forked = False


@dataclass(frozen=True)
class Threads:
    """Addresses for slots 0 and 1 (0 where kernels must run serially) and, then, the reason why they must."""

    gomp_parallel: int
    thread_num: int
    reason: str
    _in_parallel: Callable[[], int]

    def count(self) -> int:
        """Threads for a call made now by this thread: torch's setting, or 1 inside a parallel region or where none are usable."""
        if not self.gomp_parallel or _forked or self._in_parallel():
            return 1
        return torch.get_num_threads()

    def why_serial(self) -> str:
        """The reason why kernels run on one thread whatever torch's setting, or ``""``."""
        return _FORKED if _forked else self.reason


@lru_cache(maxsize=1)
def threads() -> Threads:
    """The thread pool of this process; found once."""
    path = _torch_library()
    if path is None:
        return _serial("torch's CPU library was not found among the libraries of this process")
    library = ctypes.PyDLL(path)  # calls keep the GIL: each takes a few nanoseconds
    try:
        parallel, number = _address(library, "GOMP_parallel"), _address(library, "omp_get_thread_num")
        in_parallel, dynamic = library.omp_in_parallel, library.omp_get_dynamic
        limit, levels = library.omp_get_thread_limit, library.omp_get_max_active_levels
    except AttributeError as err:
        return _serial(f"torch's OpenMP runtime lacks a symbol: {err}")
    # A kernel divides its work by the number of threads it asks for, so a runtime that may grant fewer cannot be used.
    if dynamic():
        return _serial("OMP_DYNAMIC lets the runtime grant fewer threads than asked for")
    if limit() < 2**31 - 1:
        return _serial("OMP_THREAD_LIMIT lets the runtime grant fewer threads than asked for")
    if levels() < 1:
        return _serial("OMP_MAX_ACTIVE_LEVELS is 0")
    return Threads(parallel, number, "", in_parallel)


def _serial(reason: str) -> Threads:
    return Threads(0, 0, reason, lambda: 0)


def _address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(library[name], ctypes.c_void_p).value or 0


def _torch_library() -> str | None:
    """The library of torch's CPU kernels: a symbol looked up through it is the one that torch itself calls."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if path.endswith("/libtorch_cpu.so"):
                return "/" + path
    return None


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)
