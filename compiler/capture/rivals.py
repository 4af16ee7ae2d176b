"""Products and attention on GPUs that ATen's libraries run faster than effc's kernels: found after a region is built, and left to ATen."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import optimization_hint
from torch.utils._pytree import tree_map

from effc.compiler.capture.attention import WRITTEN_OUT
from effc.compiler.capture.culprit import alike
from effc.compiler.capture.flops import flops_of
from effc.compiler.capture.partition import Group
from effc.compiler.capture.source import op_name, source_of
from effc.compiler.gpu.alone import filled
from effc.compiler.gpu.choice import AtenOp, Verdict
from effc.compiler.ir.program import Call, Program
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.gpu.device import Device

_aten = torch.ops.aten
_PRODUCTS = (
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.convolution.default,
)  # fmt: skip
#: Of these, the ones whose first operand is added to the product of the next two.
_ADDING = (_aten.addmm.default, _aten.baddbmm.default)
_ATTENTION = (
    _aten._scaled_dot_product_flash_attention.default, _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default, WRITTEN_OUT,
)  # fmt: skip
#: Template of the kernel that computes an op.
_TEMPLATES: dict[Any, str] = dict.fromkeys(_PRODUCTS, "contraction") | dict.fromkeys(_ATTENTION, "attention")
_FLOATS = frozenset({"f32", "f16", "bf16"})
#: Of a body, what computes nothing on values.
_MOVES = frozenset({"load", "store", "constant", "index", "contract", "arith.extf", "arith.truncf"})


@dataclass(frozen=True)
class Product:
    """``nodes`` that are alike and that one kernel, ``spec``, computes, each in a call of its own; ``call``: of the first."""

    nodes: list[Node]
    call: Call
    spec: KernelSpec


def products(group: Group, program: Program, sizes: Mapping[str, int]) -> Iterable[Product]:
    """Nodes with the calls that compute them, by place and arithmetic. ``sizes``: of the program's symbols in the first call.

    Products that effc joins, or whose factors are codes, are no call of theirs: ATen would have to compute more.
    """
    free = [c for c in program.calls if _is_plain(program.kernels[c.kernel])]
    found = dict[Any, Product]()
    for node in group.nodes:
        template = _TEMPLATES.get(node.target)
        if template is None or not _reads_tensors(node):
            continue
        place, flops = source_of(node), flops_of([node])
        mine = (c for c in free if program.kernels[c.kernel].template == template)
        there = (c for c in mine if c.flops.evaluate(sizes) == flops and (not place.file or c.location == str(place)))
        call = next(there, None)
        if call is not None:
            free.remove(call)
            new = Product([], call, program.kernels[call.kernel])
            found.setdefault((alike(node), new.spec), new).nodes.append(node)
    return found.values()


def aten_op(product: Product, sizes: Mapping[str, int]) -> AtenOp:
    """The first of its nodes on random tensors of its own."""
    node = product.nodes[0]
    known = [_sizes(n) for n in node.all_input_nodes]
    key = f"{op_name(node)} {alike(node)[1]}{f' of {known}' if sizes else ''}"
    return AtenOp(key, functools.partial(_runnable, node), _is_alone(node, product.spec), sizes, _between(node))


def _between(node: Node) -> int:
    """Bytes between kernels of ATen's: of a formula of attention the scores and their softmax."""
    if node.target is not WRITTEN_OUT:
        return 0
    (query, _), (key, _) = (_sizes(n) for n in node.args[:2] if isinstance(n, Node))
    return 2 * math.prod(query[:3]) * key[2] * int(node.meta["val"].element_size())


def _is_alone(node: Node, spec: KernelSpec) -> bool:
    """Whether a kernel computes what ``node`` does, and no more."""
    result = node.meta["val"][0] if isinstance(node.meta["val"], tuple | list) else node.meta["val"]
    written = [TORCH_DTYPES[o.dtype] for o in spec.operands if o.role == "write"]
    if written[0] != result.dtype:
        return False
    work = [i.op for i in spec.body if i.op not in _MOVES and i.dtype in _FLOATS]
    adds = node.target in (*_ADDING, _aten.convolution.default) and all(a is not None for a in node.args[:3])
    stores = sum(i.op == "store" for i in spec.body)
    return stores <= 1 and (not work or (adds and work == ["arith.addf"]))


def _runnable(node: Node, device: Device) -> Any:
    def given(value: Any) -> Any:
        return filled(device, *_sizes(value), value.meta["val"].dtype) if isinstance(value, Node) else value

    args, kwargs = tree_map(given, (node.args, node.kwargs))
    op: Any = node.target
    return functools.partial(op, *args, **kwargs)


def _sizes(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of a tensor in the first call."""
    meta = node.meta["val"]
    shape, stride = (tuple(optimization_hint(s, fallback=1) for s in given) for given in (meta.shape, meta.stride()))
    return shape, stride


def _is_plain(spec: KernelSpec) -> bool:
    """Whether a kernel is a product or attention of floats that lie in memory as they are."""
    plain = all(o.role in ("read", "write") and o.dtype in _FLOATS for o in spec.operands)
    return plain and spec.template in _TEMPLATES.values()


def _reads_tensors(node: Node) -> bool:
    return all(isinstance(n.meta.get("val"), torch.Tensor) for n in node.all_input_nodes)


def sentence(node: Node, verdict: Verdict, sizes: Mapping[str, int]) -> str:
    """For the report."""
    factors = node.args[1:3] if node.target in _ADDING else node.args[:2]
    shapes = " x ".join(str(list(_sizes(n)[0])) for n in factors if isinstance(n, Node))
    first = ", the first call's sizes," if sizes else ""
    return f"{op_name(node)} of {shapes}{first} at {source_of(node)}: {verdict}"
