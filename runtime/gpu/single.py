"""One kernel as a program of its own: to time it, or to look at what it computes."""

from __future__ import annotations

from effc.compiler.ir.expr import const, var
from effc.compiler.ir.program import Call, Input, Output, Pointer, Program, TensorSpec
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.gpu.code import SpecCode
from effc.runtime.gpu.device import Device
from effc.runtime.gpu.executable import GpuExecutable
from effc.runtime.guard import Unchanged


def single(spec: KernelSpec, code: SpecCode, device: Device, unchanged: Unchanged) -> GpuExecutable:
    """Takes a value for each symbol of ``spec`` and a tensor for each operand that it does not only write, in order, and gives the others,
    flat.
    """
    placed = [TensorSpec(o.dtype, (o.size,), (const(1),)) for o in spec.operands]
    written = [i for i, o in enumerate(spec.operands) if o.role == "write"]
    given = [i for i in range(len(placed)) if i not in written]
    pointers = tuple(
        Pointer("output", written.index(i), const(0)) if i in written else Pointer("input", given.index(i), const(0))
        for i in range(len(placed))
    )
    program = Program(
        spec.symbols,
        tuple(Input(placed[i]) for i in given),
        tuple(Output(placed[i]) for i in written),
        (),
        (spec,),
        (Call(0, pointers, tuple(map(var, spec.symbols))),),
        const(0),
    )
    return GpuExecutable(program, [code], device, unchanged)
