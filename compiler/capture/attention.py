"""Attention that a model writes out, ``softmax(q @ k.mT * scale + mask) @ v``, as one op: ``effc::attention``.

Models write it in many ways; after AOTAutograd all of them are two ``bmm`` and between them scalings, added masks, the decomposed
softmax, and ops that only rearrange. It is recognised from the second ``bmm`` upwards; nothing between the two may be read from elsewhere.
The op's kernel in ATen is the formula itself, for a graph whose region does not compile. A row whose scores are all -inf gives NaN, as the
formula does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils.flop_counter import register_flop_formula, sdpa_flop_count

from effc.compiler.capture.nodes import drop_unread, made

#: The op's name for the importer.
OVERLOAD = "effc.attention.default"

_aten = torch.ops.aten
_LIBRARY = torch.library.Library("effc", "FRAGMENT")
_LIBRARY.define("attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale) -> Tensor")

#: Ops that keep the elements in their order (a permute only where it moves dims of one element, an expand only to the same shape).
_REARRANGES = frozenset(
    {_aten.view.default, _aten._unsafe_view.default, _aten.clone.default, _aten.alias.default, _aten.detach.default,
     _aten.unsqueeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.permute.default, _aten.expand.default}
)  # fmt: skip
_CONVERT = torch.ops.prims.convert_element_type.default
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@torch.library.impl(_LIBRARY, "attention", "CompositeExplicitAutograd")
def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """``softmax(query @ key.mT * scale + mask) @ value`` over ``[b, h, s, d]``; the softmax is in float32 at least."""
    scores = query @ key.mT * scale
    if mask is not None:
        scores = scores + mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide).to(value.dtype) @ value


#: The op, of which ATen runs the formula.
WRITTEN_OUT = torch.ops.effc.attention.default


@register_flop_formula(torch.ops.effc.attention)
def _flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Of the two products, from the shapes."""
    return int(sdpa_flop_count(query, key, value))


def fuse_attention(graph: Graph) -> None:
    """Rewrite ``graph`` in place."""
    met = False
    for product in graph.find_nodes(op="call_function", target=_aten.bmm.default):
        scores = _probabilities(product.args[0])
        if scores is None:
            continue
        found = _scores(scores, 1.0, shared=True)
        if found is not None and _agrees(found, scores, product):
            met = True
            _replace(graph, product, found)
    if met:
        drop_unread(graph)


@dataclass
class _Found:
    """The first ``bmm``'s factors ``[b, s, d]`` and ``[b, d, t]``; masks with the shape to which each was broadcast."""

    query: Node
    key: Node
    scale: float
    masks: list[tuple[Node, torch.Size]] = field(default_factory=list)


# -- recognising ----------------------------------------------------------------------------------------------------
def _probabilities(node: Any) -> Node | None:
    """The scores whose softmax over the last dim ``node`` is, maybe rearranged or converted."""
    node = _computed(node)
    if node is None or not _is(node, _aten.div.Tensor):
        return None
    exp, total = node.args
    if not isinstance(exp, Node) or not isinstance(total, Node):
        return None
    if not _is(exp, _aten.exp.default) or not _is(total, _aten.sum.dim_IntList) or set(exp.users) != {node, total}:
        return None
    shifted = exp.args[0]
    if (
        not isinstance(shifted, Node)
        or not _is(shifted, _aten.sub.Tensor)
        or len(shifted.users) != 1
        or len(shifted.args) != 2
    ):
        return None
    scores, highest = shifted.args
    if (
        not isinstance(scores, Node)
        or not isinstance(highest, Node)
        or not _is(highest, _aten.amax.default)
        or set(scores.users) != {highest, shifted}
    ):
        return None
    last = ([-1], True)
    same = (
        total.args == (exp, *last) and highest.args == (scores, *last) and len(total.users) == len(highest.users) == 1
    )
    return scores if same and len(scores.meta["val"].shape) >= 3 else None


def _scores(node: Any, scale: float, *, shared: bool = False) -> _Found | None:
    """What the scores ``node`` are made of; ``scale`` is applied above it."""
    node = _computed(node, shared=shared)
    if node is None:
        return None
    if _is(node, _aten.mul.Tensor) or _is(node, _aten.div.Tensor):
        factor = _number(node.args[1])
        if factor is None:
            return None
        return _scores(node.args[0], scale * factor if _is(node, _aten.mul.Tensor) else scale / factor)
    if _is(node, _aten.add.Tensor) and scale == 1.0 and len(node.args) == 2 and not node.kwargs:
        for inner, mask in (node.args, node.args[::-1]):
            if isinstance(inner, Node) and isinstance(mask, Node) and inner is not mask:
                found = _scores(inner, scale) if inner.meta["val"].shape == node.meta["val"].shape else None
                if found is not None:
                    found.masks.append((mask, node.meta["val"].shape))
                    return found
        return None
    if _is(node, _aten.bmm.default):
        return _Found(node.args[0], node.args[1], scale)
    if _is(node, _aten.baddbmm.default) and node.kwargs.get("beta", 1) == 0:
        return _Found(node.args[1], node.args[2], scale * float(node.kwargs.get("alpha", 1)))
    return None


def _is(node: Any, target: Any) -> bool:
    return isinstance(node, Node) and node.target is target


def _computed(node: Any, *, shared: bool = False) -> Node | None:
    """What ``node`` rearranges or converts, where nobody else reads it, nor what lies between (``shared``: ``node`` apart)."""
    while isinstance(node, Node) and (shared or len(node.users) == 1):
        if not (_rearranges(node) or _widens(node)):
            return node
        node, shared = node.args[0], False
    return None


def _widens(node: Node) -> bool:
    return _is(node, _CONVERT) and node.args[1] in _FLOATS and node.all_input_nodes[0].meta["val"].dtype in _FLOATS


def _rearranges(node: Node) -> bool:
    if node.target not in _REARRANGES or not node.all_input_nodes:
        return False
    before, after = node.all_input_nodes[0].meta["val"], node.meta["val"]
    if _is(node, _aten.expand.default):
        return bool(before.shape == after.shape)
    if _is(node, _aten.permute.default):
        order = [d % before.dim() for d in node.args[1]]  # type: ignore[union-attr]
        wide = [d for d in order if not statically_known_true(before.shape[d] == 1)]
        return wide == sorted(wide)
    return True


def _number(value: Any) -> float | None:
    """A Python number, or the value of a 0-d constant."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if value else None
    if _is(value, _aten.full.default) and list(value.args[0]) == [] and isinstance(value.args[1], int | float):
        return float(value.args[1]) or None
    return None


def _agrees(found: _Found, scores: Node, product: Node) -> bool:
    """Whether types and shapes are those of one attention."""
    value = product.args[1]
    assert isinstance(value, Node)
    tensors = [n.meta["val"] for n in (found.query, found.key, value)]
    q, k, v = tensors
    dtype = q.dtype
    wide = torch.promote_types(dtype, torch.float32)
    return (
        dtype in _FLOATS
        and all(t.dtype == dtype for t in tensors)
        and scores.meta["val"].dtype in (dtype, wide)
        and all(m.meta["val"].dtype in _FLOATS for m, _ in found.masks)
        and isinstance(q.shape[2], int)
        and math.isfinite(found.scale)
        and statically_known_true(v.shape[1] == k.shape[2])
        and all(
            _ends(shape, q.shape[1], k.shape[2]) for shape in (scores.meta["val"].shape, *(s for _, s in found.masks))
        )
    )


def _ends(shape: torch.Size, queries: Any, keys: Any) -> bool:
    return len(shape) >= 3 and statically_known_true(shape[-2] == queries) and statically_known_true(shape[-1] == keys)


# -- rewriting ------------------------------------------------------------------------------------------------------
def _replace(graph: Graph, product: Node, found: _Found) -> None:
    value = product.args[1]
    assert isinstance(value, Node)
    heads = _with_heads(product, found)
    with graph.inserting_before(product):
        if heads is None:
            query, key, values = (made(graph, _aten.unsqueeze.default, (t, 1)) for t in (found.query, found.key, value))
            shape = None
        else:
            query, key, values = heads
            shape = (*query.meta["val"].shape[:3], key.meta["val"].shape[3])
        key = made(graph, _aten.transpose.int, (key, -2, -1))
        masks = [_mask(graph, m, s, shape) for m, s in found.masks]
        if any(m is None for m in masks):
            return
        mask = masks[0] if masks else None
        for other in masks[1:]:
            mask = made(graph, _aten.add.Tensor, (mask, other))
        fused = made(graph, WRITTEN_OUT, (query, key, values, mask, found.scale), product)
        if heads is None:
            product.replace_all_uses_with(made(graph, _aten.squeeze.dim, (fused, 1)))
        else:
            for user in list(product.users):
                user.replace_all_uses_with(fused)


def _with_heads(product: Node, found: _Found) -> tuple[Node, Node, Node] | None:
    """The factors as they were with batch and heads apart, if all were, and if every reader of the product parts them."""
    value = product.args[1]
    for q in _above(found.query):
        if q.meta["val"].dim() != 4:
            continue
        b, h, s, d = q.meta["val"].shape
        k = next((n for n in _above(found.key) if _shaped(n, (b, h, d, found.key.meta["val"].shape[2]))), None)
        v = next((n for n in _above(value) if _shaped(n, (b, h, found.key.meta["val"].shape[2], None))), None)
        if k is None or v is None:
            return None
        parted = all(
            _rearranges(u) and not _is(u, _aten.permute.default) and _shaped(u, (b, h, s, v.meta["val"].shape[3]))
            for u in product.users
        )
        return (q, k, v) if parted else None
    return None


def _above(node: Any) -> Iterator[Node]:
    """``node``, and what it rearranges."""
    while isinstance(node, Node):
        yield node
        if not _rearranges(node):
            return
        node = node.args[0]


def _shaped(node: Node, shape: tuple[Any, ...]) -> bool:
    sizes = node.meta["val"].shape
    return len(sizes) == len(shape) and all(
        want is None or statically_known_true(have == want) for have, want in zip(sizes, shape, strict=True)
    )


def _mask(graph: Graph, mask: Node, shape: torch.Size, heads: tuple[Any, ...] | None) -> Node | None:
    """``mask``, broadcast to ``shape`` in the model, as one that broadcasts to ``[b, h, s, t]`` (``[b, 1, s, t]`` without ``heads``)."""
    rank = len(shape)
    if heads is None and rank == 3:
        while mask.meta["val"].dim() < 3:
            mask = made(graph, _aten.unsqueeze.default, (mask, 0))
        return made(graph, _aten.unsqueeze.default, (mask, 1))
    if (
        heads is not None
        and rank == 4
        and all(statically_known_true(x == y) for x, y in zip(shape, heads, strict=True))
    ):
        return mask
    target = heads
    if target is None:
        batch = math.prod(shape[:-2])
        target = (batch, 1, *shape[-2:])
    if not all(isinstance(s, int) for s in (*shape, *target)):
        return None
    whole = made(graph, _aten.expand.default, (mask, list(shape)))
    return made(graph, _aten.reshape.default, (whole, list(target)))
