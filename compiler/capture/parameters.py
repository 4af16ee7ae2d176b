"""Which inputs of a graph are parameters or buffers of the user's model, and what they are called there.

Dynamo makes every tensor of the model a graph input, marks those of modules as static, and keeps the expression that
found it (``L['self']._modules['layer1']._parameters['weight']``). AOTAutograd says of each of its inputs which one of
Dynamo's it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._functorch._aot_autograd.descriptors import PlainAOTInput, SubclassGetAttrAOTInput
from torch._subclasses.fake_tensor import is_fake
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from effc.compiler.ir.formats import INTEGERS, MOST_BITS

#: Sizes of codebooks.
_TABLES = tuple(1 << bits for bits in range(1, MOST_BITS + 1))
#: Zero, positions in codebooks, and the integers of few bits (`ir.formats`), narrow ones first.
_LIMITS = sorted(
    {(0, 0), *((0, n - 1) for n in _TABLES), *(f.limits for f in INTEGERS)}, key=lambda ends: ends[1] - ends[0]
)
_LOOKUPS = (
    torch.ops.aten.index.Tensor, torch.ops.aten.embedding.default, torch.ops.aten.index_select.default,
    torch.ops.aten.gather.default, torch.ops.aten.take.default,
)  # fmt: skip
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
_STEP = re.compile(r"\._(?:modules|parameters|buffers)\['(?P<entry>[^']+)'\]|\.(?P<attribute>\w+)|\[(?P<item>[^\]]+)\]")


def static_names(gm: GraphModule) -> dict[int, str]:
    """Position among the inputs of Dynamo's graph -> name in the model, for parameters and buffers. Names are unique: of several
    modules that a function uses, two may call a parameter alike.
    """
    found: dict[int, str] = {}
    taken: set[str] = set()
    for position, node in enumerate(n for n in gm.graph.nodes if n.op == "placeholder"):
        if node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type") is None:
            continue
        source = getattr(node.meta.get("grapharg"), "source", None)
        name = _short_name(_text(source)) if source is not None else str(node.target)
        found[position] = name if name not in taken else f"{name}#{position}"
        taken.add(name)
    return found


#: (position among the inputs, attributes from there on) of a tensor of integers -> limits of its elements, one of `_LIMITS`.
Ranges = Mapping[tuple[int, tuple[str, ...]], tuple[int, int]]


def integer_ranges(names: Mapping[int, str], inputs: Sequence[Any]) -> Ranges:
    """Of parameters and buffers, and of what those of tensor subclasses hold: codes and zero points of quantized weights."""
    found: dict[tuple[int, tuple[str, ...]], tuple[int, int]] = {}
    for position in names:
        if position < len(inputs):
            for attributes, tensor in _parts(inputs[position]):
                limits = _limits(tensor) if tensor.dtype in _INTEGERS and not is_fake(tensor) else None
                if limits is not None:
                    found[position, attributes] = limits
    return found


#: (position among the inputs, attributes from there on) of a small tensor of floats -> its elements.
Tables = Mapping[tuple[int, tuple[str, ...]], tuple[float, ...]]


def small_tables(names: Mapping[int, str], inputs: Sequence[Any]) -> Tables:
    """Parameters and buffers that may be the codebook of low-bit codes (`ir.formats`), by their size."""
    found: dict[tuple[int, tuple[str, ...]], tuple[float, ...]] = {}
    for position in names:
        if position < len(inputs):
            for attributes, tensor in _parts(inputs[position]):
                fits = tensor.dim() == 1 and tensor.shape[0] in _TABLES
                if fits and tensor.dtype == torch.float32 and not is_fake(tensor) and bool(tensor.isfinite().all()):
                    found[position, attributes] = tuple(tensor.tolist())
    return found


def is_looked_up(node: Node) -> bool:
    """Whether a tensor is only read at positions that another tensor gives."""
    return bool(node.users) and all(u.target in _LOOKUPS and u.all_input_nodes[0] is node for u in node.users)


def _limits(tensor: torch.Tensor) -> tuple[int, int] | None:
    """The narrowest that hold all elements; None where none do. Not the elements' own: models of one kind share compiled code."""
    if tensor.numel() == 0:
        return None
    low, high = (int(end) for end in torch.aminmax(tensor))
    return next(((a, b) for a, b in _LIMITS if a <= low and high <= b), None)


def _parts(value: Any) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """A tensor, or the tensors of which one of a subclass consists."""
    if is_traceable_wrapper_subclass(value):
        for name in value.__tensor_flatten__()[0]:
            for attributes, tensor in _parts(getattr(value, name)):
                yield (name, *attributes), tensor
    elif isinstance(value, torch.Tensor):
        yield (), value


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
    overwritten = {n.args[0] for n in graph.nodes if n.op == "call_function" and writes_first_argument(n)}
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


def writes_first_argument(node: Node) -> bool:
    """Whether the op is one that changes a tensor in its place."""
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
