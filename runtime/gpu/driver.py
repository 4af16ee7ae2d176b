"""The CUDA driver by ctypes: load a kernel, launch a table of them, in torch's context; nothing else of CUDA is needed.

``EFFC_LIBCUDA`` names another library than ``libcuda.so.1``.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from effc.compiler.ir.errors import DeviceError

#: Attributes of a kernel: CU_FUNC_ATTRIBUTE_NUM_REGS, …_MAX_DYNAMIC_SHARED_SIZE_BYTES, …_PREFERRED_SHARED_MEMORY_CARVEOUT.
_REGISTERS, _MAX_DYNAMIC_SHARED, _CARVEOUT = 4, 8, 9
_MOST_SHARED = 100  # per cent of what shared memory and L1 have together
_PLAIN_SHARED = 48 << 10  # more must be asked for
#: Errors of kernels that have run, which whatever is called next is told: addresses, time, assertions, instructions.
_OF_EARLIER = frozenset({700, 702, 710, *range(714, 720)})

#: 64-bit words of an entry of a table of launches: kernel, programs, threads of each, bytes of shared memory, address of the parameters'
#: addresses.
LAUNCH_WORDS = 5
#: The native ``effc_launch(table, count, cuLaunchKernel, stream)``: 0, or ``(i + 1) << 32`` and the driver's code where it refuses entry
#: i.
LaunchTable = Callable[[int, int, int, int], int]


@dataclass(frozen=True)
class Refusal:
    """The driver does not take entry ``index`` of a table; ``why``, in its own words."""

    index: int
    why: str


class CudaDriver:
    """Over ``library``, libcuda. DeviceError: it refuses something, in its own words."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._modules: dict[int, int] = {}  # by the kernel that is loaded from each
        self._launch_kernel = ctypes.cast(library.cuLaunchKernel, ctypes.c_void_p).value or 0

    def enter(self, ordinal: int) -> None:
        """Give this thread the primary context of device ``ordinal``, torch's, if it has none.

        A thread has none until it calls CUDA's runtime: torch's allocator and ``torch.cuda.device`` may not, in a thread of autograd's.
        """
        context, device = ctypes.c_void_p(), ctypes.c_int()
        what = "give a thread its context"
        self._check(self._library.cuCtxGetCurrent(ctypes.byref(context)), what)
        if context.value is None:
            self._check(self._library.cuDeviceGet(ctypes.byref(device), ordinal), what)
            self._check(self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), what)
            self._check(self._library.cuCtxSetCurrent(context), what)

    def version(self) -> str:
        """The newest CUDA that the driver knows: "12.8"."""
        number = ctypes.c_int()
        self._check(self._library.cuDriverGetVersion(ctypes.byref(number)), "tell its version")
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def load(self, image: bytes, name: str, shared: int) -> int:
        """A handle of the kernel ``name`` of a cubin in the current context, with leave to use ``shared`` bytes."""
        module = ctypes.c_void_p()
        self._check(self._library.cuModuleLoadData(ctypes.byref(module), image), f"load the kernel {name}")
        try:
            function = self._function(module, name, shared)
        except DeviceError:
            self._library.cuModuleUnload(module)
            raise
        self._modules[function] = module.value or 0
        return function

    def _function(self, module: ctypes.c_void_p, name: str, shared: int) -> int:
        """The kernel ``name`` of a module, ready to be launched."""
        function = ctypes.c_void_p()
        found = self._library.cuModuleGetFunction(ctypes.byref(function), module, name.encode())
        self._check(found, f"find the kernel {name} in its cubin")
        if shared > _PLAIN_SHARED:
            asked = self._library.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, shared)
            self._check(asked, f"give the kernel {name} {shared} bytes of shared memory")
            self._library.cuFuncSetAttribute(function, _CARVEOUT, _MOST_SHARED)  # a hint, which may be refused
        # A module's code may wait for its first use to go to the GPU, which in a capture is refused: a question is a use.
        registers = ctypes.c_int()
        asked = self._library.cuFuncGetAttribute(ctypes.byref(registers), _REGISTERS, function)
        self._check(asked, f"bring the kernel {name} to the GPU")
        assert function.value is not None, "the driver gave no function, and no error"
        return function.value

    def unload(self, kernel: int) -> None:
        """Give back the code of a kernel that was loaded, and has ended."""
        self._check(self._library.cuModuleUnload(ctypes.c_void_p(self._modules.pop(kernel))), "unload a kernel")

    def launch(self, launch_table: LaunchTable, table: int, count: int, stream: int) -> Refusal | None:
        """``count`` launches on ``stream``, from the table at that address."""
        answer = launch_table(table, count, self._launch_kernel, stream)
        if not answer:
            return None
        code = answer & 0xFFFFFFFF
        earlier = "; a kernel launched before did it, effc's or another's: CUDA_LAUNCH_BLOCKING=1 shows which"
        return Refusal((answer >> 32) - 1, self._words(code) + (earlier if code in _OF_EARLIER else ""))

    def _check(self, result: int, what: str) -> None:
        if result:
            raise DeviceError(f"the GPU's driver does not {what}: {self._words(result)}")

    def _words(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        return f"{(text.value or b'unknown').decode()} (CUDA error {code})"


@lru_cache(maxsize=1)
def cuda_driver() -> CudaDriver:
    """This process's driver; DeviceError where there is none."""
    name = os.environ.get("EFFC_LIBCUDA", "libcuda.so.1")
    try:
        return CudaDriver(ctypes.CDLL(name))
    except OSError as error:
        raise DeviceError(f"no CUDA driver: {name} cannot be loaded ({error}); GPUs need NVIDIA's driver") from error
