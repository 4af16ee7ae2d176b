"""Weights that a model computes as a parameter times a mask, as `torch.nn.utils.prune` and parametrizations do in each call.

AOTAutograd's graph has the product as an op, ``mul(weight_mask, weight_orig)``. Here it becomes a constant, so that the rest of
`compress` sees a weight with zeros::

    %w = mul(%weight_mask, %weight_orig)          %w = get_attr "w"
    %y = linear(%x, %w)                    →      %y = linear(%x, %w)

`prune` also stores the product in the module in each call, as an output of the graph: that one is computed as before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from effc.compiler.compress.sites import CASTS, find_sites
from effc.compiler.compress.writer import constant

_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.(\w+)\.original$")


@dataclass(frozen=True)
class Masked:
    """``node`` stands for ``tensor``, the product of the inputs ``factors``; ``name``: of the weight in the model."""

    node: Node
    name: str
    factors: tuple[Node, Node]
    tensor: Tensor

    def of(self, values: Mapping[Node, Tensor]) -> Tensor:
        """The product of other values."""
        first, second = (values[factor] for factor in self.factors)
        return _product(first, second, self.node)


def fold_masks(gm: GraphModule, params: Mapping[Node, str], values: Mapping[Node, Tensor]) -> list[Masked]:
    """Put constants in the place of products of ``params`` (parameters and buffers by name; ``values``: their tensors), of which one
    holds 0 and 1 alone, for linear layers and convolutions to read.
    """
    found = []
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor):
        factors = [behind for factor in node.args if (behind := _behind_casts(factor)) in params]
        if len(factors) < 2 or factors[0].meta["val"].shape != factors[1].meta["val"].shape:
            continue
        mask = next((factor for factor in factors if _is_mask(values[factor])), None)
        if mask is None or not node.meta["val"].is_floating_point():
            continue
        first, second = factors
        name, tensor = _name(params[second if mask is first else first]), _product(values[first], values[second], node)
        made, held = constant(gm, "masked", tensor, first)
        node.replace_all_uses_with(made, delete_user_cb=lambda user: user.op != "output")
        if find_sites({made: name})[0]:
            found.append(Masked(made, name, (first, second), held))
        else:
            made.replace_all_uses_with(node)
            gm.graph.erase_node(made)
            delattr(gm, str(made.target))
    return found


def _behind_casts(factor: Any) -> Any:
    while isinstance(factor, Node) and factor.target in CASTS:
        factor = factor.args[0]
    return factor


def _is_mask(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all())


def _product(first: Tensor, second: Tensor, node: Node) -> Tensor:
    return torch.mul(first.detach(), second.detach()).to(node.meta["val"].dtype)


def _name(parameter: str) -> str:
    """Of the weight that is made from a parameter."""
    return _PARAMETRIZED.sub(r"\1\2", parameter).removesuffix("_orig")
