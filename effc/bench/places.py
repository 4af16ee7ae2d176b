"""Where models are measured: this machine's CPU, or its first CUDA device; what differs is moving, timing and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from effc.bench import memory
from effc.compiler.ir.errors import OptionError
from effc.costmodel.hardware import Speed

#: Multiply-adds of the probe's square product, and bytes of the array that it copies: beyond any cache.
_PRODUCT, _COPIED = 8192, 1 << 30


class Place(Protocol):
    """``placed``: a model with its inputs, there. ``seconds``: of ``count`` calls one after the other, until all have ended."""

    def placed(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]: ...

    def seconds(self, call: Callable[[], object], count: int) -> float: ...

    def peak_memory(self) -> int:
        """Bytes, since the start or the last ``reset_memory``."""

    def reset_memory(self) -> None: ...


class OnCpu:
    """Memory is what is resident of this process."""

    def placed(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
        return module, inputs

    def seconds(self, call: Callable[[], object], count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - start

    def peak_memory(self) -> int:
        return memory.peak()

    def reset_memory(self) -> None:
        memory.reset()


class OnCuda:
    """Times are of events on the current stream; memory is what torch's allocator gave out."""

    def placed(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
        moved: tuple[Any, ...] = pytree.tree_map_only(Tensor, lambda t: t.to("cuda"), inputs)
        return module.to("cuda"), moved

    def seconds(self, call: Callable[[], object], count: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(count):
            call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000

    def peak_memory(self) -> int:
        return int(torch.cuda.max_memory_allocated())

    def reset_memory(self) -> None:
        torch.cuda.reset_peak_memory_stats()


def place(device: str) -> Place:
    """By ``Setting.device``."""
    return OnCuda() if device == "cuda" else OnCpu()


class CudaLimits:
    """The rate of a large product in ``dtype`` by cuBLAS, and of a copy in memory: in place of data sheets, which no product reaches."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._factors = [torch.randn(_PRODUCT, _PRODUCT, device="cuda", dtype=dtype) for _ in range(2)]
        self._source = torch.zeros(_COPIED, dtype=torch.uint8, device="cuda")
        self._target = torch.empty_like(self._source)
        self._place = OnCuda()

    def speed(self) -> Speed:
        """Of one product and one copy, after one of each that is not timed."""
        times = []
        for call in (lambda: self._factors[0] @ self._factors[1], lambda: self._target.copy_(self._source)):
            self._place.seconds(call, 1)
            times.append(self._place.seconds(call, 1))
        return Speed(2.0 * _PRODUCT**3 / times[0], 2.0 * _COPIED / times[1])


def check_cuda() -> None:
    """OptionError where there is no CUDA device, with what is missing."""
    if torch.cuda.is_available():
        return
    if not torch.backends.cuda.is_built():
        why = (
            f"torch {torch.__version__} is a build without CUDA; install one with it (https://pytorch.org/get-started)"
        )
    else:
        why = "torch finds no CUDA device: NVIDIA's driver is missing or too old, or no device is visible"
    raise OptionError(f"--device cuda: {why}")
