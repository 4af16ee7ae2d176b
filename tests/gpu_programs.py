"""Whole models as GPU programs, whose kernels the interpreter runs: all but triton, the driver and the GPU is the product's."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from tt_interpreter import Memory, Region, run

from effc.compiler.build import BuildReport, Built
from effc.compiler.capture.backend import compile_with
from effc.compiler.codegen.gpu.emit import emit
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.gpu_build import build_gpu
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.toolchain import Toolchain
from effc.compiler.worker import HANDLERS
from effc.runtime.gpu.driver import Parameters
from effc.runtime.gpu.executable import GpuExecutable

SM90 = GpuTarget.named("sm_90")


def _text(payload: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker replies, with TTIR in the place of cubins."""
    spec = KernelSpec.from_json(payload["spec"])
    emitted = emit(spec, GpuTarget(*payload["target"]), aligned=payload["aligned"])
    parameters = len(spec.operands) + 2 + len(spec.symbols)
    launches = [
        [one.name, base64.b64encode(one.text.encode()).decode(), str(one.grid), 32 * one.warps, 0, parameters]
        for one in emitted.launches
    ]
    return {"launches": launches, "scratch": str(emitted.scratch)}


class TextTools:
    """The part of a `Toolchain` that builds programs, in this process and without triton."""

    def request(self, kind: str, payload: Mapping[str, Any]) -> Any:
        handler = _text if kind == "gpu" else HANDLERS[kind]
        return json.loads(json.dumps(handler(payload)))

    def map(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Any]:
        return [self.request(*request) for request in requests]


class InterpretingDriver:
    """A device whose kernels are TTIR, and whose memory is this process's. ``known``: tensors that kernels may touch."""

    def __init__(self) -> None:
        self.kernels: list[tuple[str, str]] = []
        self.launched: list[str] = []
        self.known: list[torch.Tensor] = []

    def load(self, image: bytes, name: str, shared: int) -> int:
        self.kernels.append((name, image.decode()))
        return len(self.kernels) - 1

    def launch(self, kernel: int, grid: int, threads: int, shared: int, stream: int, parameters: Parameters) -> None:
        name, text = self.kernels[kernel]
        self.launched.append(name)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in self.known}
        regions = [Region(a, _bytes(s)) for a, s in storages.items() if s.nbytes()]
        run(text, grid, Memory(regions), list(parameters.values))

    def current(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext()

    def stream(self, device: torch.device) -> int:
        return 0


def _bytes(storage: torch.UntypedStorage) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy()


@contextmanager
def watched(driver: InterpretingDriver) -> Iterator[None]:
    """While executables run, the driver knows the tensors of their calls, and no other memory."""
    bases = GpuExecutable._bases

    def known(self: GpuExecutable, *tensors: Any) -> Any:
        *lists, arena = tensors
        driver.known = [self._error, arena, *(t for each in lists for t in each)]
        return bases(self, *tensors)

    with patch.object(GpuExecutable, "_bases", known):
        yield


def gpu_backend(driver: InterpretingDriver, fallback: str) -> Callable[[Any, list[Any]], Any]:
    """A backend of ``torch.compile`` that builds regions for sm_90; tensors are this process's, ``driver`` interprets."""

    def make(text: str) -> Built:
        executable = build_gpu(
            text,
            options={},
            cache=None,
            target=SM90,
            tools=cast(Toolchain, TextTools()),
            driver=driver,
            device=torch.device("cpu"),
        )
        return Built(cast(Any, executable), cast(Any, None), BuildReport())

    def backend(gm: Any, inputs: list[Any]) -> Any:
        return compile_with(gm, inputs, Options(fallback=fallback), lambda options: make)

    return backend


def compiled_for_gpu(
    model: Callable[..., Any], driver: InterpretingDriver, *, dynamic: bool = False
) -> Callable[..., Any]:
    """``model`` through ``torch.compile``; an op for which there is no kernel is an error."""
    backend = gpu_backend(driver, "error")
    compiled: Callable[..., Any] = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)
    return compiled
