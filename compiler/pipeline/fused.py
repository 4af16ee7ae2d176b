"""The kernel of a fused group."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.ir.expr import Expr, var
from effc.compiler.pipeline.fusion import Group
from effc.compiler.pipeline.graph import Tensor
from effc.compiler.pipeline.kernels import KernelBuilder
from effc.compiler.pipeline.placed import Kernel
from effc.compiler.pipeline.placement import Layout


def fused_kernel(group: Group, layout: Layout, stored: Sequence[Tensor]) -> Kernel:
    """The loops or contraction that computes ``stored``, the group's results that lie in memory."""
    builder = KernelBuilder(layout, group.dims, group.reduction, group)
    for tensor in stored:
        index = group.result_index(tensor)
        builder.store(builder.value(tensor, tensor_index(tensor)), tensor, layout.places[tensor], index)
    template = "loops" if group.kind == "loops" else "contraction"
    made = builder.finish(template, kernel_name(group), group.ops[0].location)
    made.convolves = group.kind == "conv"
    return made


def tensor_index(tensor: Tensor) -> tuple[Expr, ...]:
    return tuple(var(f"d{i}") for i in range(len(tensor.sizes)))


def kernel_name(group: Group) -> str:
    """A readable name: what the members compute, repeated words once."""
    words: list[str] = []
    for op in group.ops:
        if op.kind != "generic":
            word = op.kind
        elif op.reduction_dims:
            word = "+".join(op.attributes["reduce"])
        else:
            assert op.body is not None
            last = op.body.instrs[op.body.yields[0]].op
            word = last.rsplit(".", 1)[-1]
        if not words or words[-1] != word:
            words.append(word)
    return "+".join(words[:6]) + ("+…" if len(words) > 6 else "")
