"""Whole models as GPU programs, whose kernels the interpreter runs: all but triton, the driver and the GPU is the product's."""

from __future__ import annotations

import base64
import ctypes
import json
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from importer_harness import compile_and_run
from torch import nn
from tt_interpreter import Memory, Region, run

from effc.compiler.build import Built
from effc.compiler.capture.backend import compile_with
from effc.compiler.codegen.gpu.emit import emit
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.gpu.build import GpuBuilt, HostCode, build_gpu, host_functions, read_code
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.toolchain import Toolchain
from effc.compiler.worker import HANDLERS
from effc.runtime.gpu.code import SpecCode
from effc.runtime.gpu.device import Device
from effc.runtime.gpu.driver import LAUNCH_WORDS, Refusal
from effc.runtime.gpu.executable import GpuExecutable


def _text(payload: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker replies, with the number of parameters and TTIR in the place of cubins."""
    spec = KernelSpec.from_json(payload["spec"])
    emitted = emit(spec, GpuTarget(*payload["target"]), aligned=payload["aligned"])
    parameters = len(spec.operands) + 2 + len(spec.symbols)
    launches = [
        [one.name, _image(parameters, one.text), str(one.grid), 32 * one.warps, 0, parameters, 0]
        for one in emitted.launches
    ]
    return {"launches": launches, "scratch": str(emitted.scratch), "numbers": [str(n) for n in emitted.numbers]}


def _image(parameters: int, text: str) -> str:
    return base64.b64encode(f"{parameters}\n{text}".encode()).decode()


def code_of(spec: KernelSpec, target: GpuTarget) -> SpecCode:
    """What `InterpretingGpu` runs of a kernel at aligned addresses."""
    return read_code(_text({"spec": spec.to_json(), "target": astuple(target), "aligned": True}))


class TextTools:
    """The part of a `Toolchain` that builds programs, in this process and without triton."""

    def request(self, kind: str, payload: Mapping[str, Any]) -> Any:
        handler = _text if kind == "gpu" else HANDLERS[kind]
        return json.loads(json.dumps(handler(payload)))

    def map(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Any]:
        return [self.request(*request) for request in requests]


def graph_of(model: nn.Module, *inputs: torch.Tensor, dynamic: bool = False) -> str:
    """Of the only region of ``model``."""
    with torch.no_grad():
        _, capture = compile_and_run(model, inputs, dynamic=dynamic)
    return capture.regions[0].text


class Untimed:
    """What a stand-in for a device has no use for: a clock, streams, captures, and code to unload."""

    def elapsed(self, calls: Sequence[Callable[[], object]]) -> list[float] | None:
        return None

    def stream(self) -> int:
        return 0

    def hold(self, tensors: Sequence[torch.Tensor]) -> None:
        pass

    def is_capturing(self) -> bool:
        return False

    def retire(self, kernels: Sequence[int]) -> None:
        pass


class InterpretingGpu(Untimed):
    """A GPU called ``name`` whose kernels are TTIR, and whose memory is this process's; kernels may touch what it gave out, and ``inputs``.

    ``launched``: names of kernels in order, ``waits``: how often the host waited.
    """

    def __init__(self, name: str = "cuda:0", capability: int = 90) -> None:
        self.name, self.model = torch.device(name), "an interpreter"
        self.capability, self.processors = capability, 132
        self.kernels: list[tuple[str, str]] = []
        self.launched: list[str] = []
        self.waits = 0
        self.inputs: list[torch.Tensor] = []
        self._given: list[weakref.ref[torch.Tensor]] = []
        self._entered = 0
        self._parameters: list[int] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        self._entered += 1
        yield
        self._entered -= 1

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        made = torch.empty_strided(size, stride, dtype=dtype)
        if dtype.is_floating_point:
            made.fill_(float("nan"))
        self._given = [known for known in self._given if known() is not None] + [weakref.ref(made)]
        return made

    def host_cells(self, count: int) -> torch.Tensor:
        self.cells = torch.zeros(count, dtype=torch.int32)
        self.inputs.append(self.cells)
        return self.cells

    def load(self, image: bytes, name: str, shared: int) -> int:
        count, _, text = image.decode().partition("\n")
        self.kernels.append((name, text))
        self._parameters.append(int(count))
        return len(self.kernels) - 1

    def launch(self, table: int, count: int) -> Refusal | None:
        assert self._entered, "the device is not the current one"
        entries = (ctypes.c_uint64 * (LAUNCH_WORDS * count)).from_address(table)
        for at in range(0, LAUNCH_WORDS * count, LAUNCH_WORDS):
            kernel, grid, _threads, _shared, parameters = entries[at : at + LAUNCH_WORDS]
            name, text = self.kernels[kernel]
            self.launched.append(name)
            addresses = ctypes.cast(parameters, ctypes.POINTER(ctypes.POINTER(ctypes.c_uint64)))
            values = [addresses[i][0] for i in range(self._parameters[kernel])]
            run(text, grid, Memory(self._memory()), values)
        return None

    def wait(self) -> None:
        self.waits += 1

    def _memory(self) -> list[Region]:
        given = [tensor for known in self._given if (tensor := known()) is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in (*given, *self.inputs)}
        return [Region(a, _bytes(s)) for a, s in storages.items() if s.nbytes()]


def _bytes(storage: torch.UntypedStorage) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy()


@contextmanager
def watched(gpu: InterpretingGpu) -> Iterator[None]:
    """While executables run, the device knows the inputs of their calls."""
    place = GpuExecutable._place

    def known(self: GpuExecutable, tensors: Any, state: Any, *rest: Any) -> Any:
        cells = [self._cells._memory] if self._cells is not None else []
        gpu.inputs = [*tensors, *(state.derived if state is not None else ()), *cells]
        return place(self, tensors, state, *rest)

    with patch.object(GpuExecutable, "_place", known):
        yield


def host() -> HostCode:
    return host_functions(cast(Toolchain, TextTools()), None)


def built_on(gpu: Device, text: str) -> GpuBuilt:
    """A region's graph IR for ``gpu``, in this process and without triton."""
    return build_gpu(text, options={}, cache=None, device=gpu, host=host(), tools=cast(Toolchain, TextTools()))


def gpu_backend(
    gpu: InterpretingGpu, fallback: str, passes: Mapping[str, Any] | None = None
) -> Callable[[Any, list[Any]], Any]:
    """A backend of ``torch.compile`` that builds regions for ``gpu``, as whose memory this process's serves: tensors are on the CPU."""

    def make(text: str) -> Built:
        return cast(Built, built_on(gpu, text))

    def backend(gm: Any, inputs: list[Any]) -> Any:
        return compile_with(gm, inputs, Options(fallback=fallback, passes=passes or {}), lambda options: make)

    return backend


def compiled_for_gpu(
    model: Callable[..., Any],
    gpu: InterpretingGpu,
    *,
    dynamic: bool = False,
    passes: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """``model`` through ``torch.compile``; an op for which there is no kernel is an error."""
    backend = gpu_backend(gpu, "error", passes)
    compiled: Callable[..., Any] = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)
    return compiled
