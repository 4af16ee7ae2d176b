"""Factors of contractions that no contraction kernel can read where they lie are copied out first.

A kernel reads a factor at an address that is linear in its loops (conversions of the value are fine). What reaches it through a
roll, a gather or a mask is written once, row-major, and read from there. So are the weights of a convolution that training changes
step by step: their output channels, which a kernel reads by vectors, are turned innermost.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.schedules import Packing, packing, supports
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import product
from effc.compiler.ir.spec import Instr
from effc.compiler.pipeline.fused import fused_kernel
from effc.compiler.pipeline.fusion import Fusion, Group
from effc.compiler.pipeline.graph import CONTRACTIONS, Graph, Tensor
from effc.compiler.pipeline.kernels import KernelBuilder
from effc.compiler.pipeline.placement import Layout
from effc.compiler.pipeline.views import chain

#: What a factor that is codes is made by, its code first.
_QUANTIZED = ("decode", "arith.subf", "arith.mulf")
#: Positions of a convolution's result from which on turning its weights first pays.
_MANY_POSITIONS = 64


def materialize_factors(graph: Graph, fusion: Fusion, layout: Layout, target: Target) -> None:
    """Give each such factor a buffer of its own in ``layout.stand_ins``, and ask for the copy that fills it."""
    changing = {source.tensor for source in graph.inputs if not source.param}
    for group in fusion.groups:
        if group.kind == "conv":
            _turn_weights(group, changing, layout)
        if group.kind in CONTRACTIONS:
            for tensor in _unreadable(group, layout):
                if tensor not in layout.stand_ins:
                    layout.stand_ins[tensor] = layout.buffer(tensor)
            _materialize_border(graph, group, layout, target)


def _materialize_border(graph: Graph, group: Group, layout: Layout, target: Target) -> None:
    """An image whose border the kernel cannot add itself: a copy with its border, channels innermost."""
    image = group.ops[0].operands[0]
    if image in layout.stand_ins or not any(view.kind == "border" for view in chain(image)[1]):
        return
    stored = [t for op in group.ops for t in op.results if t in layout.places]
    if not stored:
        return
    kernel, inputs = fused_kernel(group, layout, stored), graph.constants()
    constants = [i for i, s in enumerate(kernel.sites) if s.base.kind == "input" and s.base.index in inputs]
    packed = isinstance(packing(kernel.spec, constants, target), Packing)
    if not packed and supports(kernel.spec, target) is not None:
        order = [0, *range(2, len(image.sizes)), 1]
        layout.stand_ins[image] = layout.buffer(image, order)


def _turn_weights(group: Group, changing: set[Tensor], layout: Layout) -> None:
    """Weights ``[o, c, k…]`` that are an input: a copy ``[c, k…, o]``."""
    conv = group.ops[0]
    weights, axes = conv.operands[1], [str(e) for e in conv.maps[1]]
    if chain(weights)[0] not in changing or weights in layout.stand_ins:
        return
    summed = {f"d{i}" for i in conv.reduction_dims}
    kept = [i for i, name in enumerate(axes) if name not in summed]
    taps = [i for i, name in enumerate(axes) if name in summed]
    positions = product(size for i, size in enumerate(conv.dims) if f"d{i}" not in axes)
    many = positions.constant is None or positions.constant >= _MANY_POSITIONS
    if kept and many and len(taps) > 1 and any(weights.sizes[i].constant != 1 for i in taps[1:]):
        order = [*kept[:-1], *taps, kept[-1]]
        layout.stand_ins[weights] = layout.buffer(weights, order)


def _unreadable(group: Group, layout: Layout) -> list[Tensor]:
    founder = group.ops[0]
    builder = KernelBuilder(layout, group.dims, group.reduction, group)
    builder.value(founder.results[0], founder.results[0].sizes)
    builder.split_dims()
    contract = next(i for i in builder.instrs if i.op == "contract")
    bad = [not _readable(builder, position) for position in contract.args]
    return [tensor for tensor, unreadable in zip(founder.operands[:2], bad, strict=True) if unreadable]


def _readable(builder: KernelBuilder, position: int) -> bool:
    """Whether a value is a load at a linear address, a conversion of one, or codes, less a zero point, times a scale (`ir.spec`)."""
    instr: Instr = builder.instrs[position]
    while instr.op in _QUANTIZED or (instr.op.startswith("arith.") and len(instr.args) == 1):
        instr = builder.instrs[instr.args[0]]
    if instr.op != "load":
        return False
    address = instr["address"]
    names = {name for name in address.variables() if name[0] in "dv"}
    return all(name[0] == "d" and address.coefficient(name) is not None for name in names)
