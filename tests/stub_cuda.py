"""A CUDA driver that launches nothing and keeps what it is given, and a GPU that has it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_programs import host

from effc.runtime.gpu.driver import CudaDriver, Refusal

_POINTER = ctypes.POINTER(ctypes.c_void_p)


@dataclass
class StubCuda:
    """The part of libcuda that is called, with its C types. ``answer``: what every function returns; ``refused``: attributes that cannot be
    set, and names of kernels that are not found.
    """

    answer: int = 0
    refused: frozenset[int | str] = frozenset()
    images: list[bytes] = field(default_factory=list)
    unloaded: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    attributes: list[tuple[int, int]] = field(default_factory=list)  # that were set, and their values
    used: list[int] = field(default_factory=list)  # kernels that were asked about
    launches: list[dict[str, Any]] = field(default_factory=list)
    parameters: int = 0
    contexts: threading.local = field(default_factory=threading.local)  # a thread has none before it is given one

    def __post_init__(self) -> None:
        c = ctypes
        self.cuCtxGetCurrent = c.CFUNCTYPE(c.c_int, _POINTER)(self._context)
        self.cuDeviceGet = c.CFUNCTYPE(c.c_int, c.POINTER(c.c_int), c.c_int)(self._device)
        self.cuDevicePrimaryCtxRetain = c.CFUNCTYPE(c.c_int, _POINTER, c.c_int)(self._primary)
        self.cuCtxSetCurrent = c.CFUNCTYPE(c.c_int, c.c_void_p)(self._set_context)
        self.cuModuleLoadData = c.CFUNCTYPE(c.c_int, _POINTER, c.c_char_p)(self._load)
        self.cuModuleUnload = c.CFUNCTYPE(c.c_int, c.c_void_p)(self._unload)
        self.cuModuleGetFunction = c.CFUNCTYPE(c.c_int, _POINTER, c.c_void_p, c.c_char_p)(self._function)
        self.cuFuncSetAttribute = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int, c.c_int)(self._set_attribute)
        self.cuFuncGetAttribute = c.CFUNCTYPE(c.c_int, c.POINTER(c.c_int), c.c_int, c.c_void_p)(self._attribute)
        self.cuDriverGetVersion = c.CFUNCTYPE(c.c_int, c.POINTER(c.c_int))(self._version)
        self.cuGetErrorString = c.CFUNCTYPE(c.c_int, c.c_int, c.POINTER(c.c_char_p))(self._words)
        sizes = [c.c_uint] * 7
        self.cuLaunchKernel = c.CFUNCTYPE(
            c.c_int, c.c_void_p, *sizes, c.c_void_p, c.c_void_p, c.c_void_p
        )(self._launch)  # fmt: skip

    def _context(self, context: Any) -> int:
        context[0] = getattr(self.contexts, "current", None)
        return self.answer

    def _device(self, device: Any, ordinal: int) -> int:
        device[0] = 0x40 + ordinal
        return self.answer

    def _primary(self, context: Any, device: int) -> int:
        context[0] = 0x100 + device
        return self.answer

    def _set_context(self, context: int) -> int:
        self.contexts.current = context
        return self.answer

    def _load(self, module: Any, image: bytes) -> int:
        self.images.append(image)
        module[0] = 0x10 + len(self.images)
        return self.answer

    def _unload(self, module: int) -> int:
        self.unloaded.append(module)
        return self.answer

    def _function(self, function: Any, module: int, name: bytes) -> int:
        assert module == 0x10 + len(self.images)
        self.names.append(name.decode())
        function[0] = 0x20 + len(self.names)
        return self.answer or int(name.decode() in self.refused)

    def _set_attribute(self, function: int, attribute: int, value: int) -> int:
        assert function == 0x20 + len(self.names)
        self.attributes.append((attribute, value))
        return self.answer or int(attribute in self.refused)

    def _attribute(self, value: Any, attribute: int, function: int) -> int:
        self.used.append(function)
        value[0] = 32
        return self.answer

    def _version(self, number: Any) -> int:
        number[0] = 12080
        return self.answer

    def _words(self, code: int, text: Any) -> int:
        text[0] = b"invalid argument"
        return 0

    def _launch(self, function: int, *rest: Any) -> int:
        gx, gy, gz, bx, by, bz, shared, stream, parameters, extra = rest
        assert (gy, gz, by, bz, extra) == (1, 1, 1, 1, None)
        slots = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))
        values = [ctypes.c_uint64.from_address(slots[i] or 0).value for i in range(self.parameters)]
        self.launches.append(
            {"function": function, "grid": gx, "threads": bx, "shared": shared, "stream": stream, "values": values}
        )
        return self.answer


class StubGpu:
    """This process's memory as that of a GPU whose driver is a stub."""

    def __init__(self, cuda: StubCuda) -> None:
        self.name, self.model = torch.device("cuda:0"), "a stub of a GPU"
        self.capability, self.processors = 90, 132
        self._driver = CudaDriver(cuda)
        self.load = self._driver.load
        self.allocated, self.current_stream, self.capturing = 0, 0xABC, False
        self.held: list[tuple[int, list[int]]] = []
        self.retired: list[int] = []

    def current(self) -> AbstractContextManager[object]:
        return nullcontext()

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        self.allocated += 1
        return torch.empty_strided(size, stride, dtype=dtype)

    def host_cells(self, count: int) -> torch.Tensor:
        self.cells = torch.zeros(count, dtype=torch.int32)
        return self.cells

    def launch(self, table: int, count: int) -> Refusal | None:
        return self._driver.launch(host().launch, table, count, self.current_stream)

    def wait(self) -> None:
        pass

    def elapsed(self, calls: Sequence[Callable[[], object]]) -> list[float] | None:
        """It has no clock."""
        return None

    def stream(self) -> int:
        return self.current_stream

    def hold(self, tensors: Sequence[torch.Tensor]) -> None:
        self.held.append((self.current_stream, [t.data_ptr() for t in tensors]))

    def is_capturing(self) -> bool:
        return self.capturing

    def retire(self, kernels: Sequence[int]) -> None:
        self.retired += kernels
