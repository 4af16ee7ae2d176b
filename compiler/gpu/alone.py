"""A GPU kernel called alone, on memory of its own: what is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from effc.compiler.ir.spec import KernelSpec
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.gpu.code import SpecCode
from effc.runtime.gpu.device import Device
from effc.runtime.gpu.single import single
from effc.runtime.guard import Unchanged


def alone(
    spec: KernelSpec, code: SpecCode, device: Device, unchanged: Unchanged, values: Mapping[str, int] | None = None
) -> Callable[[], object]:
    """A call of a kernel. ``values``: of its symbols. RuntimeError, DeviceError: there is no memory for its operands, or the driver
    refuses it.
    """
    kernel, values = single(spec, code, device, unchanged), values or {}
    tensors = [
        filled(device, (o.size.evaluate(values),), (1,), TORCH_DTYPES[o.dtype])
        for o in spec.operands
        if o.role != "write"
    ]
    return lambda: kernel([*values.values()], tensors)


def filled(device: Device, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory with numbers in it: a GPU multiplies zeros with less power, and so at another clock. A stride of 0 repeats them.
    They come from a generator of their own: the user's goes on as if nothing had been timed.
    """
    made = device.empty([n if step else 1 for n, step in zip(size, stride, strict=True)], stride, dtype)
    if dtype.is_floating_point:
        made.normal_(generator=torch.Generator(made.device))
    else:
        made.zero_()
    return made.expand(size)
