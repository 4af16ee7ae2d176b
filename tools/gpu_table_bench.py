"""Where the rows of ``gpu_tables.py`` are measured: the first CUDA device, or, to try the tables out, the interpreter at small sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import torch
from gpu_interpreted import sized
from gpu_programs import InterpretingGpu, code_of, host, watched
from torch import Tensor

from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.gpu.build import GpuBuilder
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.cache import Cache
from effc.runtime.gpu.code import SpecCode
from effc.runtime.gpu.device import Device
from effc.runtime.gpu.single import single
from effc.runtime.guard import Unchanged

_DESCRIBED, _PLAIN = GpuTarget.named("sm_90+tma"), GpuTarget.named("sm_90")
#: A kernel, and whether it may copy by descriptors.
Wanted = tuple[KernelSpec, bool]
#: What is timed: it computes one tensor.
Timed = Callable[[], Tensor]


class Bench(Protocol):
    """``small``: sizes are to be so that the interpreter runs them. ``device``: name of where tensors are."""

    small: bool
    device: str

    def compile(self, wanted: Sequence[Wanted]) -> None:
        """Kernels that will be called, all at once."""

    def kernel(self, wanted: Wanted, tensors: Sequence[Tensor]) -> Timed:
        """A call of a kernel on ``tensors``, one for each operand that it does not write alone. LoweringError: there is none."""

    def seconds(self, calls: Sequence[Timed]) -> list[float]:
        """Of each on the GPU, in turn; nothing of what it reads is in L2."""


class OnGpu:
    """The first CUDA device; what is compiled is kept in effc's cache."""

    small, device = False, "cuda:0"

    def __init__(self) -> None:
        self._name, self._builder = torch.device(self.device), GpuBuilder({}, Cache())
        self._gpu, self._unchanged = self._builder.device(self._name), self._builder.unchanged()

    def compile(self, wanted: Sequence[Wanted]) -> None:
        for described in (False, True):
            specs = [spec for spec, may in wanted if may == described]
            with suppress(LoweringError):  # the row whose kernel is refused says so
                self._builder.kernels(specs, self._name, descriptors=described)

    def kernel(self, wanted: Wanted, tensors: Sequence[Tensor]) -> Timed:
        spec, described = wanted
        (code,) = self._builder.kernels([spec], self._name, descriptors=described)
        return _call(sized(spec), code, self._gpu, self._unchanged, tensors)

    def seconds(self, calls: Sequence[Timed]) -> list[float]:
        return self._gpu.elapsed(calls)


class Interpreted:
    """This process, whose clock says nothing of a GPU."""

    small, device = True, "cpu"

    def __init__(self) -> None:
        self._gpu = InterpretingGpu()

    def compile(self, wanted: Sequence[Wanted]) -> None:
        pass

    def kernel(self, wanted: Wanted, tensors: Sequence[Tensor]) -> Timed:
        spec, described = wanted
        code = code_of(spec, _DESCRIBED if described else _PLAIN)
        call = _call(sized(spec), code, self._gpu, host().unchanged, tensors)

        def interpreted() -> Tensor:
            with watched(self._gpu):
                return call()

        return interpreted

    def seconds(self, calls: Sequence[Timed]) -> list[float]:
        found = []
        for call in calls:
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        return found


def _call(spec: KernelSpec, code: SpecCode, device: Device, unchanged: Unchanged, tensors: Sequence[Tensor]) -> Timed:
    program = single(spec, code, device, unchanged)
    return lambda: program((), tensors)[0]
