"""Products on GPUs that ATen's libraries run faster than effc's kernels: found after a region is built, and left to ATen."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from effc.compiler.capture.culprit import alike
from effc.compiler.capture.flops import flops_of
from effc.compiler.capture.partition import Group
from effc.compiler.capture.source import op_name, source_of
from effc.compiler.gpu_alone import filled
from effc.compiler.gpu_choice import AtenOp, Verdict
from effc.compiler.ir.program import Call, Program
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.gpu.device import Device

_aten = torch.ops.aten
_PRODUCTS = (
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.convolution.default,
)  # fmt: skip
#: Of these, the ones whose first operand is added to the product of the next two.
_ADDING = (_aten.addmm.default, _aten.baddbmm.default)
_FLOATS = frozenset({"f32", "f16", "bf16"})


def products(group: Group, program: Program) -> Iterator[tuple[Node, Call]]:
    """Nodes of known sizes, each with the one call that computes it, by place and arithmetic. One of many that are alike stands for all.

    Products that effc joins, or whose factors are codes, are no call of theirs: ATen would have to compute more.
    """
    free = [c for c in program.calls if _is_plain(program.kernels[c.kernel])]
    seen = set[Any]()
    for node in group.nodes:
        if node.target not in _PRODUCTS or not _is_static(node) or alike(node) in seen:
            continue
        place, flops = source_of(node), flops_of([node])
        mine = (c for c in free if c.flops.evaluate({}) == flops and (not place.file or c.location == str(place)))
        call = next(mine, None)
        if call is not None:
            free.remove(call)
            seen.add(alike(node))
            yield node, call


def aten_op(node: Node, call: Call) -> AtenOp:
    """``node`` on random tensors of its own."""
    key = f"{op_name(node)} {alike(node)[1]}"
    after = call.name.split("+")[1:]
    added = node.target not in (_aten.mm.default, _aten.bmm.default) and all(a is not None for a in node.args[:3])
    return AtenOp(key, functools.partial(_runnable, node), not after or (added and after == ["addf"]))


def _runnable(node: Node, device: Device) -> Any:
    def given(value: Any) -> Any:
        if isinstance(value, Node):
            meta = value.meta["val"]
            return filled(device, tuple(meta.shape), meta.stride(), meta.dtype)
        return value

    args, kwargs = tree_map(given, (node.args, node.kwargs))
    op: Any = node.target
    return functools.partial(op, *args, **kwargs)


def _is_plain(spec: KernelSpec) -> bool:
    """Whether a kernel is a product of floats that lie in memory as they are, of sizes known now."""
    known = not spec.symbols and all(o.size.constant is not None for o in spec.operands)
    plain = all(o.role in ("read", "write") and o.dtype in _FLOATS for o in spec.operands)
    return known and plain and spec.template == "contraction"


def _is_static(node: Node) -> bool:
    values = tree_leaves([node.meta.get("val"), *(n.meta.get("val") for n in node.all_input_nodes)])
    return all(isinstance(v, torch.Tensor) and all(isinstance(s, int) for s in (*v.shape, *v.stride())) for v in values)


def sentence(node: Node, verdict: Verdict) -> str:
    """For the report."""
    factors = node.args[1:3] if node.target in _ADDING else node.args[:2]
    shapes = " x ".join(str(list(n.meta["val"].shape)) for n in factors if isinstance(n, Node))
    return f"{op_name(node)} of {shapes} at {source_of(node)}: {verdict}"
