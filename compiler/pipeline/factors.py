"""Factors of contractions that no contraction kernel can read where they lie are copied out first.

A kernel reads a factor at an address that is linear in its loops (conversions of the value are fine). What reaches it through a
roll, a gather or a mask is written once, row-major, and read from there.
"""

from __future__ import annotations

from effc.compiler.ir.spec import Instr
from effc.compiler.pipeline.fusion import Fusion, Group
from effc.compiler.pipeline.graph import CONTRACTIONS, Tensor
from effc.compiler.pipeline.kernels import KernelBuilder
from effc.compiler.pipeline.placement import Layout, row_major


def materialize_factors(fusion: Fusion, layout: Layout) -> None:
    """Give each such factor a buffer of its own in ``layout.stand_ins``, and ask for the copy that fills it."""
    for group in fusion.groups:
        if group.kind in CONTRACTIONS:
            for tensor in _unreadable(group, layout):
                if tensor not in layout.stand_ins:
                    layout.stand_ins[tensor] = layout.buffer(tensor, row_major(tensor.sizes))


def _unreadable(group: Group, layout: Layout) -> list[Tensor]:
    founder = group.ops[0]
    builder = KernelBuilder(layout, group.dims, group.reduction, group)
    builder.value(founder.results[0], founder.results[0].sizes)
    builder.split_dims()
    contract = next(i for i in builder.instrs if i.op == "contract")
    bad = [not _readable(builder, position) for position in contract.args]
    return [tensor for tensor, unreadable in zip(founder.operands[:2], bad, strict=True) if unreadable]


def _readable(builder: KernelBuilder, position: int) -> bool:
    """Whether a value is a load at a linear address, or a conversion of one."""
    instr: Instr = builder.instrs[position]
    while instr.op.startswith("arith.") and len(instr.args) == 1:
        instr = builder.instrs[instr.args[0]]
    if instr.op != "load" or instr.args:
        return False
    address = instr["address"]
    names = {name for name in address.variables() if name[0] in "dv"}
    return all(name[0] == "d" and address.coefficient(name) is not None for name in names)
