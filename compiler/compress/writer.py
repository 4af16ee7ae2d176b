"""Writing operations and constants into an ATen graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node

from effc.compiler.capture.nodes import made

_aten = torch.ops.aten
_convert = torch.ops.prims.convert_element_type.default


class Writer:
    """Writes before ``place``; new nodes stand in the user's model where it does."""

    def __init__(self, gm: GraphModule, place: Node) -> None:
        self.gm, self.place = gm, place

    def op(self, target: Any, *args: Any) -> Node:
        with self.gm.graph.inserting_before(self.place):
            return made(self.gm.graph, target, args, self.place)

    def cast(self, value: Node, dtype: torch.dtype) -> Node:
        return value if value.meta["val"].dtype == dtype else self.op(_convert, value, dtype)

    def view(self, value: Node, sizes: Sequence[Any]) -> Node:
        return self.op(_aten.view.default, value, list(sizes))

    def sizes(self, value: Node) -> list[Any]:
        """Of a tensor's dimensions: numbers, or nodes where they are symbols."""
        found = value.meta["val"].shape
        return [s if isinstance(s, int) else self.op(_aten.sym_size.int, value, d) for d, s in enumerate(found)]

    def scaled(self, codes: Node, zeros: Node | None, scales: Node) -> Node:
        """``(codes - zeros) * scales`` in float32; zeros and scales broadcast."""
        value = self.cast(codes, torch.float32)
        if zeros is not None:
            value = self.op(_aten.sub.Tensor, value, self.cast(zeros, torch.float32))
        return self.op(_aten.mul.Tensor, value, scales)

    def times(self, codes: Node, zeros: Node | None, factors: Node) -> Node:
        """``(codes - zeros) * factors`` in the integers that all of them are."""
        value = codes if zeros is None else self.op(_aten.sub.Tensor, codes, zeros)
        return self.op(_aten.mul.Tensor, value, factors)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` on ``device``. By itself for tests without a GPU, which keep it where it is."""
    return tensor.to(device)


def constant(gm: GraphModule, name: str, tensor: torch.Tensor, like: Node) -> tuple[Node, torch.Tensor]:
    """A node that stands for ``tensor``, and what ``gm`` holds from now on: the tensor, on the device of ``like``, a placeholder, whose
    fake tensors the node joins.
    """
    attribute = f"effc_{sum(n.op == 'get_attr' for n in gm.graph.nodes)}_{name}".replace(".", "_")
    value = like.meta["val"]
    assert isinstance(value, FakeTensor), "AOTAutograd traces with fake tensors"
    held = moved(tensor, value.device)
    setattr(gm, attribute, held)
    last = [n for n in gm.graph.nodes if n.op == "placeholder"][-1]
    with gm.graph.inserting_after(last):
        node = gm.graph.create_node("get_attr", attribute)  # a plain attribute: modules find buffers slowly
    with value.fake_mode:
        node.meta["val"] = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device=value.device)
    return node, held
