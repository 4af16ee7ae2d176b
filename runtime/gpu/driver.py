"""The CUDA driver by ctypes: load a kernel, launch it. torch has made the context; nothing else of CUDA is needed.

``EFFC_LIBCUDA`` names another library than ``libcuda.so.1``.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, Protocol

import torch

from effc.compiler.ir.errors import DeviceError

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_PLAIN_SHARED = 48 << 10  # more must be asked for


class Parameters:
    """The parameters of one launch: ``count`` slots of 8 bytes, of which an i32 fills the lower half."""

    def __init__(self, count: int) -> None:
        self.values = (ctypes.c_uint64 * count)()
        start = ctypes.addressof(self.values)
        self.pointers = (ctypes.c_void_p * count)(*(start + 8 * i for i in range(count)))


class Driver(Protocol):
    """What an executable needs of a device. ``current``: while it is entered, ``load`` and ``launch`` are for that device; ``load`` gives a
    handle of a kernel, ``stream`` the one on which torch works.
    """

    def current(self, device: torch.device) -> AbstractContextManager[object]: ...

    def load(self, image: bytes, name: str, shared: int) -> int: ...

    def launch(
        self, kernel: int, grid: int, threads: int, shared: int, stream: int, parameters: Parameters
    ) -> None: ...

    def stream(self, device: torch.device) -> int: ...


class CudaDriver:
    """A `Driver` over ``library``, libcuda. DeviceError: it refuses something, in its own words."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._library.cuLaunchKernel.argtypes = [
            ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip

    def load(self, image: bytes, name: str, shared: int) -> int:
        """The kernel ``name`` of a cubin in the current context, with leave to use ``shared`` bytes."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(self._library.cuModuleLoadData(ctypes.byref(module), image), f"load the kernel {name}")
        found = self._library.cuModuleGetFunction(ctypes.byref(function), module, name.encode())
        self._check(found, f"find the kernel {name} in its cubin")
        if shared > _PLAIN_SHARED:
            asked = self._library.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, shared)
            self._check(asked, f"give the kernel {name} {shared} bytes of shared memory")
        assert function.value is not None, "the driver gave no function, and no error"
        return function.value

    def launch(self, kernel: int, grid: int, threads: int, shared: int, stream: int, parameters: Parameters) -> None:
        """``grid`` programs of ``kernel`` on ``stream``."""
        done = self._library.cuLaunchKernel(
            kernel, grid, 1, 1, threads, 1, 1, shared, stream, ctypes.addressof(parameters.pointers), None
        )
        self._check(done, f"launch {grid} programs of {threads} threads")

    def current(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.cuda.device(device)

    def stream(self, device: torch.device) -> int:
        return int(torch._C._cuda_getCurrentRawStream(device.index))

    def _check(self, result: int, what: str) -> None:
        if result:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(result, ctypes.byref(text))
            words = (text.value or b"unknown").decode()
            raise DeviceError(f"the GPU's driver does not {what}: {words} (CUDA error {result})")


@lru_cache(maxsize=1)
def cuda_driver() -> CudaDriver:
    """This process's driver; DeviceError where there is none."""
    name = os.environ.get("EFFC_LIBCUDA", "libcuda.so.1")
    try:
        return CudaDriver(ctypes.CDLL(name))
    except OSError as error:
        raise DeviceError(f"no CUDA driver: {name} cannot be loaded ({error}); GPUs need NVIDIA's driver") from error
