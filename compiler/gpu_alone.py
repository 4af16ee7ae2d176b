"""A GPU kernel called alone, on memory of its own: what is timed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from effc.compiler.ir.expr import const
from effc.compiler.ir.program import Call, Input, Output, Pointer, Program, TensorSpec
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.gpu.code import SpecCode
from effc.runtime.gpu.device import Device
from effc.runtime.gpu.executable import GpuExecutable
from effc.runtime.guard import Unchanged


def alone(spec: KernelSpec, code: SpecCode, device: Device, unchanged: Unchanged) -> Callable[[], object]:
    """A call of a kernel without symbols. RuntimeError, DeviceError: there is no memory for its operands, or the driver refuses it."""
    placed = [TensorSpec(o.dtype, (o.size,), (const(1),)) for o in spec.operands]
    read = [i for i, o in enumerate(spec.operands) if o.role == "read"]
    written = [i for i, o in enumerate(spec.operands) if o.role == "write"]
    pointers = tuple(
        Pointer("input", read.index(i), const(0)) if i in read else Pointer("output", written.index(i), const(0))
        for i in range(len(placed))
    )
    program = Program(
        (),
        tuple(Input(placed[i]) for i in read),
        tuple(Output(placed[i]) for i in written),
        (),
        (spec,),
        (Call(0, pointers, ()),),
        const(0),
    )
    executable = GpuExecutable(program, [code], device, unchanged)
    sizes = [placed[i].sizes[0].evaluate({}) for i in read]
    tensors = [
        filled(device, (size,), (1,), TORCH_DTYPES[placed[i].dtype]) for i, size in zip(read, sizes, strict=True)
    ]
    return lambda: executable((), tensors)


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
