"""A GPU as effc needs it: what it is, memory, the current stream, kernels. All that asks torch about CUDA stands here."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Protocol

import torch

from effc.runtime.gpu.driver import CudaDriver, LaunchTable, Refusal

#: Rounds in which calls are timed, and bytes written before each: more than any GPU's L2, and long enough for the host to be ahead.
_ROUNDS, _FLUSHED = 9, 256 << 20


class Device(Protocol):
    """One device. ``name``: torch's. ``model``: the GPU and its driver. ``capability``: 90 for sm_90; ``processors``: streaming
    multiprocessors.
    """

    name: torch.device
    model: str
    capability: int
    processors: int

    def current(self) -> AbstractContextManager[object]:
        """While it is entered, all that follows here is meant for this device."""

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory of torch's caching allocator, on the current stream."""

    def host_cells(self, count: int) -> torch.Tensor:
        """``count`` i32 zeros in the host's memory that kernels write by the same address."""

    def load(self, image: bytes, name: str, shared: int) -> int:
        """A handle of a cubin's kernel, with leave to use ``shared`` bytes. DeviceError: the driver refuses it."""

    def launch(self, table: int, count: int) -> Refusal | None:
        """``count`` launches, from the table at that address (`driver.LAUNCH_WORDS`), on torch's current stream."""

    def wait(self) -> None:
        """Until all that was launched has ended."""

    def elapsed(self, calls: Sequence[Callable[[], object]]) -> list[float] | None:
        """Seconds of each call on the GPU, nothing of what it reads being in L2; None: it has no clock. Not for while a graph is
        captured. torch's OutOfMemoryError: too large.
        """

    def stream(self) -> int:
        """Which is torch's current one."""

    def hold(self, tensors: Sequence[torch.Tensor]) -> None:
        """Their memory is given to nobody else before what is launched on torch's current stream until they are freed has ended."""

    def is_capturing(self) -> bool:
        """Whether what is launched becomes part of a CUDA graph."""

    def retire(self, kernels: Sequence[int]) -> None:
        """Handles that nobody launches any more, from any thread: their code is unloaded when other code is loaded next, and has ended."""


class CudaDevice:
    """torch's CUDA device ``name``."""

    def __init__(self, name: torch.device, driver: CudaDriver, launch_table: LaunchTable) -> None:
        self.name, self._driver, self._launch_table = name, driver, launch_table
        self.capability, self.processors = capability(name), processors(name)
        self.model = f"{torch.cuda.get_device_properties(name).name}, driver's CUDA {driver.version()}"
        self._threads = threading.local()
        self._retired: deque[int] = deque()
        torch.empty(1, device=name)  # torch makes the device's context, in which kernels are loaded

    def current(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.name)

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty_strided(size, stride, dtype=dtype, device=self.name)

    def host_cells(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32, pin_memory=True)

    def load(self, image: bytes, name: str, shared: int) -> int:
        self._enter()
        self._unload()
        return self._driver.load(image, name, shared)

    def launch(self, table: int, count: int) -> Refusal | None:
        self._enter()
        return self._driver.launch(self._launch_table, table, count, self.stream())

    def wait(self) -> None:
        torch.cuda.synchronize(self.name)

    def elapsed(self, calls: Sequence[Callable[[], object]]) -> list[float]:
        with self.current():
            flushed = self.empty((_FLUSHED,), (1,), torch.uint8)
            times: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in calls]
            for _ in range(_ROUNDS + 1):  # in turn; the first round warms up
                for call, mine in zip(calls, times, strict=True):
                    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    flushed.zero_()
                    start.record()
                    call()
                    end.record()
                    mine.append((start, end))
            self.wait()
        return [statistics.median(s.elapsed_time(e) / 1e3 for s, e in mine[1:]) for mine in times]

    def stream(self) -> int:
        return int(torch._C._cuda_getCurrentRawStream(self.name.index))

    def hold(self, tensors: Sequence[torch.Tensor]) -> None:
        stream = torch.cuda.current_stream(self.name)
        for tensor in tensors:
            tensor.record_stream(stream)

    def is_capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def retire(self, kernels: Sequence[int]) -> None:
        self._retired.extend(kernels)

    def _unload(self) -> None:
        """What is retired, unless a graph is being captured, in which nobody may wait."""
        if not self._retired or self.is_capturing():
            return
        taken = list[int]()  # before it waits: those that come meanwhile may still run; another thread may do the same
        with suppress(IndexError):
            while True:
                taken.append(self._retired.popleft())
        try:
            if taken:
                self.wait()
        except RuntimeError:  # nobody may: another thread captures a graph, or a kernel failed, as the next launch says
            self._retired.extend(taken)
            return
        for kernel in taken:
            self._driver.unload(kernel)

    def _enter(self) -> None:
        if not hasattr(self._threads, "entered"):
            self._driver.enter(self.name.index)
            self._threads.entered = True


def capability(name: torch.device) -> int:
    """Of a device: 90 for sm_90."""
    major, minor = torch.cuda.get_device_capability(name)
    return 10 * major + minor


def processors(name: torch.device) -> int:
    """Of a device: streaming multiprocessors."""
    return int(torch.cuda.get_device_properties(name).multi_processor_count)


def allows_tf32() -> bool:
    """Whether torch's user lets products of float32 round their factors to TF32: ``torch.set_float32_matmul_precision("high")``,
    ``torch.backends.cuda.matmul.allow_tf32`` or ``fp32_precision``.
    """
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def allows_tf32_convolutions() -> bool:
    """Whether torch's user lets convolutions of float32 do so, as it does by default: ``torch.backends.cudnn.allow_tf32`` or
    ``torch.backends.cudnn.conv.fp32_precision``.
    """
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]  # made at run time
