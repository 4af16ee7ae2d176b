"""Which runs a product or attention on a GPU: the kernel that effc compiled, or ATen's op, cuBLAS's, cuDNN's or a flash kernel.

Both are timed, once a GPU, shape and version, unless a count of what they do says that one is far ahead; so what was measured wins over
what was predicted. Sizes that change are timed as they are in the first call. Where nothing can be measured (a CUDA graph is being
captured, there is no memory for it, ATen's op fails) the count decides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from effc.compiler.build import digest
from effc.compiler.codegen.gpu.rival import Work, counted
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.gpu.alone import alone
from effc.compiler.ir.errors import DeviceError
from effc.compiler.ir.program import Call
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec
from effc.runtime.cache import Cache
from effc.runtime.gpu.device import Device
from effc.runtime.gpu.executable import GpuExecutable

#: Times by which one is ahead in the count, from which on it is not measured.
_FAR_AHEAD = 4.0
#: Seconds below which a product is effc's: an op of ATen's costs the host about as much.
_LEAST = 5e-6
#: The part of effc's time that ATen's must save: another op parts a region, and clocks are not that exact.
_GAIN = 0.05


@dataclass(frozen=True)
class Verdict:
    """Seconds of effc's kernel, and of ATen's op with the kernel that must follow it; ``measured`` on ``where``, or counted."""

    ours: float
    theirs: float
    measured: bool
    where: str

    @property
    def is_ours(self) -> bool:
        return self.ours < _LEAST or self.theirs > (1 - _GAIN) * self.ours

    def __str__(self) -> str:
        how = "measured" if self.measured else "counted"
        return f"{1e6 * self.ours:.1f} µs in effc's kernel, {1e6 * self.theirs:.1f} µs in ATen's op, {how} for {self.where}"


@dataclass(frozen=True)
class AtenOp:
    """``run(device)`` gives a function of no arguments that computes the op on tensors of that device. ``key``: text that ops share which
    are the same to ATen; ``alone``: effc's kernel computes nothing else. ``sizes``: of the program's symbols, those of the first call.
    ``between``: bytes that one of the op's own kernels writes and another one reads, where it has several.
    """

    key: str
    run: Callable[[Device], Callable[[], torch.Tensor]]
    alone: bool
    sizes: Mapping[str, int]
    between: int = 0


def judged(executable: GpuExecutable, call: Call, op: AtenOp, target: GpuTarget, cache: Cache | None) -> Verdict:
    """For a kernel that ``executable`` calls, a product of floats or attention, and the op that is the same."""
    device, spec = executable.device, executable.program.kernels[call.kernel]
    ours, theirs = counted(_work(spec, call, op, target), target)
    guess = Verdict(ours, theirs, False, device.model)
    if max(ours, theirs) < _LEAST or max(ours / theirs, theirs / ours) > _FAR_AHEAD:
        return guess
    code = executable.code[call.kernel]
    images = "".join(digest(str(one.image)) for one in code.launches)
    key = digest("product", device.model, target.key, torch.__version__, spec.digest(), images, op.key, str(op.alone))
    known = cache.get("timings", key) if cache is not None else None
    if known is None:
        seconds = _seconds(executable, call, op)
        if seconds is None:
            return guess
        known = json.dumps(seconds).encode()
        if cache is not None:
            cache.put("timings", key, known)
    ours, theirs = json.loads(known)
    return Verdict(ours, theirs, True, device.model)


def _seconds(executable: GpuExecutable, call: Call, op: AtenOp) -> list[float] | None:
    """Of effc's kernel and of ATen's op; None: they cannot be timed now, or one of them cannot run."""
    device, spec = executable.device, executable.program.kernels[call.kernel]
    if device.is_capturing():  # all that is launched, operands too, would be part of the graph
        return None
    try:
        kernel = alone(spec, executable.code[call.kernel], device, executable.unchanged, _values(spec, call, op))
        return device.elapsed([kernel, _followed(op, device)])
    except (RuntimeError, DeviceError):  # no memory for operands, or a library or the driver refuses
        return None


def _work(spec: KernelSpec, call: Call, op: AtenOp, target: GpuTarget) -> Work:
    values = _values(spec, call, op)
    sizes = [(o.role, ITEM_SIZE[o.dtype] * o.size.evaluate(values)) for o in spec.operands]
    written = sum(size for role, size in sizes if role == "write")
    dtype = next((i.dtype for i in spec.body if i.op == "load"), spec.operands[0].dtype)
    read_again = op.between + (0 if op.alone else written)
    return Work(
        call.flops.evaluate(op.sizes), sum(size for _, size in sizes), read_again, target.arithmetic(spec, dtype)
    )


def _values(spec: KernelSpec, call: Call, op: AtenOp) -> dict[str, int]:
    """Of the kernel's symbols."""
    return dict(zip(spec.symbols, (e.evaluate(op.sizes) for e in call.symbols), strict=True))


def _followed(op: AtenOp, device: Device) -> Callable[[], object]:
    """ATen's op, and a copy of its result for the kernel that follows."""
    run = op.run(device)
    return run if op.alone else lambda: run().clone()
