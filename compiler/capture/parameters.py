"""Which inputs of a graph are parameters or buffers of the user's model, and what they are called there.

Dynamo makes every tensor of the model a graph input, marks those of modules as static, and keeps the expression that
found it (``L['self']._modules['layer1']._parameters['weight']``). AOTAutograd says of each of its inputs which one of
Dynamo's it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._functorch._aot_autograd.descriptors import PlainAOTInput, SubclassGetAttrAOTInput
from torch._subclasses.fake_tensor import is_fake
from torch.fx import Graph, GraphModule, Node

_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
_STEP = re.compile(r"\._(?:modules|parameters|buffers)\['(?P<entry>[^']+)'\]|\.(?P<attribute>\w+)|\[(?P<item>[^\]]+)\]")


def static_names(gm: GraphModule) -> dict[int, str]:
    """Position among the inputs of Dynamo's graph -> name in the model, for parameters and buffers. Names are unique: of several
    modules that a function uses, two may call a parameter alike.
    """
    found: dict[int, str] = {}
    for position, node in enumerate(n for n in gm.graph.nodes if n.op == "placeholder"):
        if node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type") is None:
            continue
        source = getattr(node.meta.get("grapharg"), "source", None)
        name = _short_name(_text(source)) if source is not None else str(node.target)
        found[position] = name if name not in found.values() else f"{name}#{position}"
    return found


def zero_inputs(names: dict[int, str], inputs: Sequence[Any]) -> frozenset[int]:
    """Positions of parameters and buffers that hold integers, all of them 0: zero points of symmetric quantization."""
    return frozenset(i for i in names if i < len(inputs) and is_zero(inputs[i]))


def is_zero(tensor: Any) -> bool:
    """Whether a tensor of integers holds nothing but 0."""
    plain = isinstance(tensor, torch.Tensor) and not is_fake(tensor) and tensor.dtype in _INTEGERS
    return plain and tensor.numel() > 0 and not bool(tensor.any())


@dataclass(frozen=True)
class Static:
    """A parameter or buffer, or a tensor that one of a subclass holds: ``position`` among the inputs of Dynamo's graph, ``attributes`` from
    there on, ``name`` in the model.
    """

    position: int
    attributes: tuple[str, ...]
    name: str


def statics_of(graph: Graph, names: dict[int, str]) -> dict[Node, Static]:
    """Parameters and buffers among the inputs of an AOTAutograd graph that it does not overwrite."""
    overwritten = {n.args[0] for n in graph.nodes if n.op == "call_function" and _writes_first_argument(n)}
    found: dict[Node, Static] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and node not in overwritten:
            described, attributes = node.meta.get("desc"), list[str]()
            while isinstance(described, SubclassGetAttrAOTInput):
                attributes.insert(0, described.attr)
                described = described.base
            if isinstance(described, PlainAOTInput) and described.idx in names:
                name = ".".join([names[described.idx], *attributes])
                found[node] = Static(described.idx, tuple(attributes), name)
    return found


def _writes_first_argument(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    arguments = [] if schema is None else list(schema.arguments)
    return bool(arguments) and arguments[0].alias_info is not None and arguments[0].alias_info.is_write


def _text(source: Any) -> str:
    name = source.name
    return str(name() if callable(name) else name)  # a method up to torch 2.11, then a property


def _short_name(source: str) -> str:
    """``L['self']._modules['a']._parameters['weight']`` -> ``a.weight``; what is no attribute keeps its text."""
    steps = [m.group("entry") or m.group("attribute") or m.group("item").strip("'\"") for m in _STEP.finditer(source)]
    if source.startswith(("L[", "G[")):
        steps = steps[1:]
    return ".".join(steps) or source
