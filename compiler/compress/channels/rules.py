"""What operations do to channels, one rule a kind: the tracks of the result, from those of the operands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import Node

from effc.compiler.compress.channels.classes import Labels
from effc.compiler.compress.channels.tracks import Track, Tracks, reshaped

if TYPE_CHECKING:
    from effc.compiler.compress.channels.coupling import Coupling

_aten = torch.ops.aten
#: Of several results, one of each.
Result = Tracks | tuple[Tracks, ...]
Rule = Callable[["Coupling", Node], Result]


def _shape(node: Any) -> Sequence[int]:
    shape: Sequence[int] = node.meta["val"].shape
    return shape


def _rank(node: Any) -> int:
    return len(_shape(node))


def _arg(node: Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


# -- the same elements ----------------------------------------------------------------------------------------------
def _same(coupling: Coupling, node: Node) -> Tracks:
    return [Track(t.labels) for t in coupling.of(node.args[0])]


def _view(coupling: Coupling, node: Node) -> Tracks:
    x, why = node.args[0], "a reshape mixes them with a size that is not known"
    made = (reshaped(coupling.classes, t, _shape(x), _shape(node), why) for t in coupling.of(x))
    return [t for t in made if t is not None]


def _permute(coupling: Coupling, node: Node) -> Tracks:
    order: list[int] = list(_arg(node, 1, "dims", None))
    return [Track(t.labels.transpose(order)) for t in coupling.of(node.args[0])]


def _transpose(coupling: Coupling, node: Node) -> Tracks:
    first, second = (0, 1) if node.target is _aten.t.default else (_arg(node, 1, "dim0", 0), _arg(node, 2, "dim1", 1))
    if _rank(node) < 2:
        return _same(coupling, node)
    return [Track(t.labels.swapaxes(first, second)) for t in coupling.of(node.args[0])]


def _unsqueeze(coupling: Coupling, node: Node) -> Tracks:
    return [Track(np.expand_dims(t.labels, _arg(node, 1, "dim", 0))) for t in coupling.of(node.args[0])]


def _expand(coupling: Coupling, node: Node) -> Tracks:
    front = (1,) * (_rank(node) - _rank(node.args[0]))
    return [Track(t.labels.reshape(front + t.labels.shape)) for t in coupling.of(node.args[0])]


# -- parts ----------------------------------------------------------------------------------------------------------
def _select(coupling: Coupling, node: Node) -> Tracks:
    given: Sequence[Any] = node.args
    x, dim, index = given[0], given[1] % _rank(given[0]), given[2]
    if not isinstance(index, int):
        return [Track(_at(t, 0, dim)) for t in coupling.whole(node, x, [dim])]
    for t in coupling.of(x):
        t.kept.add(dim)
    return _parts(coupling, node, (_at(t, index, dim) for t in coupling.of(x)))


def _at(track: Track, index: int, dim: int) -> Labels:
    """The labels of one place along ``dim``, without it."""
    found: Labels = np.asarray(track.labels.take(index if track.varies(dim) else 0, axis=dim))
    return found


def _unbind(coupling: Coupling, node: Node) -> tuple[Tracks, ...]:
    x, dim = node.args[0], _arg(node, 1, "dim", 0) % _rank(node.args[0])
    for t in coupling.of(x):
        t.kept.add(dim)
    places = range(len(node.meta["val"]))
    return tuple(_parts(coupling, node, (_at(t, i, dim) for t in coupling.of(x))) for i in places)


def _slice(coupling: Coupling, node: Node) -> Tracks:
    x, dim = node.args[0], _arg(node, 1, "dim", 0) % _rank(node.args[0])
    bounds = [_arg(node, p, name, default) for p, name, default in ((2, "start", None), (3, "end", None))]
    if _arg(node, 4, "step", 1) != 1 or any(not isinstance(b, int | None) for b in bounds):
        return [Track(t.labels) for t in coupling.whole(node, x, [dim])]
    return _parts(coupling, node, (_part(t, dim, slice(*bounds)) for t in coupling.of(x)))


def _split(coupling: Coupling, node: Node) -> tuple[Tracks, ...]:
    x, dim = node.args[0], _arg(node, 2, "dim", 0) % _rank(node.args[0])
    sizes = [value.shape[dim] for value in node.meta["val"]]
    if any(not isinstance(s, int) for s in sizes):
        return tuple([Track(t.labels) for t in coupling.whole(node, x, [dim])] for _ in sizes)
    ends = np.cumsum(sizes)
    return tuple(
        _parts(coupling, node, (_part(t, dim, slice(end - size, end)) for t in coupling.of(x)))
        for size, end in zip(sizes, ends.tolist(), strict=True)
    )


def _glu(coupling: Coupling, node: Node) -> Tracks:
    """One half times a function of the other: corresponding channels go together."""
    x, rank = node.args[0], _rank(node)
    dim = _arg(node, 1, "dim", -1) % rank
    half = _shape(node)[dim]
    if not isinstance(half, int):
        return [Track(t.labels) for t in coupling.whole(node, x, [dim])]
    wide = [not isinstance(s, int) or s != 1 for s in _shape(node)]
    halves = (slice(0, half), slice(half, 2 * half))
    tracks = (_parts(coupling, node, (_part(t, dim, part) for t in coupling.of(x))) for part in halves)
    return coupling.joined(node, [(part, wide) for part in tracks])


def _part(track: Track, dim: int, part: slice) -> Labels:
    return track.labels[(slice(None),) * dim + (part,)] if track.varies(dim) else track.labels


def _parts(coupling: Coupling, node: Node, labels: Iterable[Labels]) -> Tracks:
    """The tracks of a part; a single channel stays, for nothing would be left."""
    found = []
    for one in labels:
        if one.size > 1:
            found.append(Track(one))
        else:
            coupling.classes.fix(one, f"{coupling.place(node)} takes a single one")
    return found


def _cat(coupling: Coupling, node: Node) -> Tracks:
    """Along its dimension the channels of one operand behind those of the other; along others they stay or go together."""
    parts = list(_arg(node, 0, "tensors", ()))
    rank = _rank(node)
    dim = _arg(node, 1, "dim", 0) % rank
    if any(_rank(p) != rank for p in parts):  # empty ones of one dimension, which torch lets pass
        for part in parts:
            coupling.whole(node, part, range(_rank(part)))
        return []
    along = {t.dims for p in parts for t in coupling.of(p) if t.varies(dim)}
    others = sorted({d for dims in along for d in dims if d != dim})
    if len(along) > 1 or any(not any(t.varies(dim) for t in coupling.of(p)) for p in parts):
        along, found = {(dim,)}, [coupling.whole(node, p, others) for p in parts]
    else:
        found = [coupling.of(p) for p in parts]
    made = []
    if along and any(t.varies(dim) for tracks in found for t in tracks):
        made.append(
            Track(np.concatenate([_along(coupling, node, p, t, dim) for p, t in zip(parts, found, strict=True)], dim))
        )
    beside = [[Track(t.labels) for t in tracks if not t.varies(dim)] for tracks in found]
    wide = [[d != dim and (not isinstance(s, int) or s != 1) for d, s in enumerate(_shape(p))] for p in parts]
    return made + coupling.joined(node, list(zip(beside, wide, strict=True)))


def _along(coupling: Coupling, node: Node, part: Any, tracks: Tracks, dim: int) -> Any:
    """The labels of ``part`` along ``dim``; of channels that stay where it has none."""
    for track in tracks:
        if track.varies(dim):
            return track.labels
    size = _shape(part)[dim]
    stay = coupling.classes.new(size if isinstance(size, int) else 1)
    coupling.classes.fix(stay, "they are joined with an activation that stays whole")
    return stay.reshape([-1 if d == dim else 1 for d in range(_rank(part))])


# -- sums, and what looks at all of a dimension ---------------------------------------------------------------------
def _reduction(coupling: Coupling, node: Node) -> Result:
    """A sum, mean, variance or extreme: what stays would change, so all that it is taken over stay."""
    x = node.args[0]
    dims = _arg(node, 1, "dim", None)
    rank = _rank(x)
    over = {d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}
    tracks = coupling.whole(node, x, over)
    value = node.meta["val"]
    several = isinstance(value, tuple | list)
    keeps = (value[0] if several else value).dim() == rank
    left = [Track(t.labels if keeps else t.labels.squeeze(tuple(over))) for t in tracks]
    return tuple([Track(t.labels) for t in left] for _ in value) if several else left


def _softmax(coupling: Coupling, node: Node) -> Tracks:
    dim = _arg(node, 1, "dim", None) % _rank(node)
    return [Track(t.labels) for t in coupling.whole(node, node.args[0], [dim])]


def _pool(dims: int) -> Rule:
    def rule(coupling: Coupling, node: Node) -> Result:
        rank = _rank(node.args[0])
        tracks = coupling.whole(node, node.args[0], range(rank - dims, rank))
        value = node.meta["val"]
        results = len(value) if isinstance(value, tuple | list) else 0
        made = tuple([Track(t.labels) for t in tracks] for _ in range(results or 1))
        return made if results else made[0]

    return rule


def _pad(coupling: Coupling, node: Node) -> Tracks:
    pads: list[Any] = list(_arg(node, 1, "pad", ()))
    rank = _rank(node)
    padded = [rank - 1 - i // 2 for i, p in enumerate(pads) if p != 0]
    return [Track(t.labels) for t in coupling.whole(node, node.args[0], padded)]


def _embedding(coupling: Coupling, node: Node) -> Tracks:
    """Columns of the table; its rows are looked up."""
    front = (1,) * (_rank(node) - 1)
    for index in node.all_input_nodes[1:]:
        coupling.whole(node, index, range(_rank(index)))
    return [Track(t.labels.reshape(*front, -1)) for t in coupling.whole(node, node.args[0], [0])]


# -- products -------------------------------------------------------------------------------------------------------
def _product(coupling: Coupling, node: Node) -> Tracks:
    """``[batch…, rows, sum]`` times ``[batch…, sum, columns]``; what is summed over goes only from a weight and what meets it."""
    offset = 0 if node.target in (_aten.mm.default, _aten.bmm.default) else 1
    a, b = node.args[offset], node.args[offset + 1]
    rank = _rank(a)
    batch = range(rank - 2)
    left = _single(coupling, node, coupling.of(a), (*batch, rank - 1, rank - 2))
    right = _single(coupling, node, coupling.of(b), (*batch, rank - 2, rank - 1))
    sums = [t for t in left if t.varies(rank - 1)], [t for t in right if t.varies(rank - 2)]
    if all(sums) and node in coupling.products:
        coupling.classes.join(sums[0][0].labels.ravel(), sums[1][0].labels.ravel())
    else:
        for tracks in sums:
            coupling.fix(
                tracks, f"{coupling.place(node)} multiplies them with an activation, or with a weight that stays whole"
            )
    wide = [True] * (rank - 2) + [False, False]
    made = [t for t in left if t.varies(rank - 2)] + [t for t in right if t.varies(rank - 1)]
    over_batch = [[t for t in tracks if any(t.varies(d) for d in batch)] for tracks in (left, right)]
    made += coupling.joined(node, [(tracks, wide) for tracks in over_batch])
    made = [Track(t.labels) for t in made]
    return coupling.added(node, made, node.args[0], rank - 1) if offset else made


def _single(coupling: Coupling, node: Node, tracks: Tracks, order: Sequence[int]) -> Tracks:
    """Each of an operand's along the first dimension of ``order`` along which it varies."""
    found = []
    for track in tracks:
        chosen = next(d for d in order if track.varies(d))
        found += coupling.some_whole(node, [track], [d for d in order if d != chosen])
    return found


def _convolution(coupling: Coupling, node: Node) -> Tracks:
    given: Sequence[Any] = node.args
    (x, w, bias), transposed, groups = given[:3], given[6], given[8]
    rank = _rank(x)
    spatial = range(2, rank)
    inputs = [t for t in coupling.whole(node, x, [0, *spatial]) if t.varies(1)]
    out, sums = (1, 0) if transposed else (0, 1)
    weights = _single(coupling, node, coupling.whole(node, w, range(2, _rank(w))), (out, sums))
    outputs = [t.labels.ravel() for t in weights if t.varies(out)]
    summed = [t.labels.ravel() for t in weights if t.varies(sums)]
    met = [t.labels.ravel() for t in inputs]
    if groups == 1 and met and summed and node in coupling.products:
        coupling.classes.join(met[0], summed[0])
    elif groups > 1 and met and outputs and not transposed:
        _by_groups(coupling, node, met[0], outputs[0], summed, groups)
    else:
        for labels in [*met, *summed, *(outputs if groups > 1 else [])]:
            coupling.classes.fix(labels, f"{coupling.place(node)} needs all of them")
    made = [
        Track(labels.reshape(1, -1, *[1] * (rank - 2))) for labels in (outputs if groups == 1 or not transposed else [])
    ]
    return coupling.added(node, made, bias, dim=1)


def _by_groups(coupling: Coupling, node: Node, met: Any, outputs: Any, summed: Sequence[Any], groups: int) -> None:
    """A convolution in groups loses whole groups, of one channel where it is depthwise."""
    classes = coupling.classes
    heads = [classes.join_along(labels.reshape(groups, -1), 1)[:, 0] for labels in (met, outputs)]
    classes.join(*heads)
    for labels in summed:
        classes.fix(labels, f"{coupling.place(node)} needs all of them")


def _attention(coupling: Coupling, node: Node) -> tuple[Tracks, ...]:
    """Of ``[batch, heads, rows, channels]``: heads go."""
    heads: list[tuple[Tracks, Sequence[bool]]] = []
    if len({_shape(operand)[1] for operand in node.args[:3]}) > 1:
        for operand in node.args[:3]:
            coupling.fix(coupling.of(operand), f"{coupling.place(node)} shares some heads")
        return tuple([] for _ in node.meta["val"])
    for operand in node.args[:3]:
        tracks = coupling.whole(node, operand, [0, 2, 3])
        heads.append((tracks, [False, True, False, False]))
    mask = node.kwargs.get("attn_mask")
    if isinstance(mask, Node):
        rank, shape = _rank(mask), _shape(mask)
        tracks = coupling.whole(node, mask, [d for d in range(rank) if rank - d != 3])
        tracks = [Track(t.labels.reshape((1,) * (4 - rank) + t.labels.shape)) for t in tracks]
        heads.append((tracks, [False, rank >= 3 and shape[-3] != 1, False, False]))
    found = coupling.joined(node, heads)
    return tuple(
        [Track(t.labels.reshape(1, -1, *[1] * (value.dim() - 2))) for t in found]
        if isinstance(value, torch.Tensor) and value.dim() > 2
        else []
        for value in node.meta["val"]
    )


RULES: Mapping[Any, Rule] = {
    **dict.fromkeys(
        (
            _aten.clone.default,
            _aten._to_copy.default,
            _aten.alias.default,
            _aten.detach.default,
            _aten.hardswish.default,
            torch.ops.prims.convert_element_type.default,
        ),
        _same,
    ),
    **dict.fromkeys((_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default), _view),
    **dict.fromkeys((_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims), _view),
    _aten.permute.default: _permute,
    **dict.fromkeys((_aten.transpose.int, _aten.t.default), _transpose),
    _aten.unsqueeze.default: _unsqueeze,
    _aten.expand.default: _expand,
    _aten.select.int: _select,
    _aten.unbind.int: _unbind,
    _aten.slice.Tensor: _slice,
    **dict.fromkeys((_aten.split.Tensor, _aten.split_with_sizes.default), _split),
    _aten.glu.default: _glu,
    _aten.cat.default: _cat,
    **dict.fromkeys(
        (
            _aten.sum.dim_IntList,
            _aten.mean.dim,
            _aten.mean.default,
            _aten.sum.default,
            _aten.amax.default,
            _aten.amin.default,
            _aten.var_mean.correction,
            _aten.var.correction,
        ),
        _reduction,
    ),
    **dict.fromkeys((_aten._softmax.default, _aten._log_softmax.default), _softmax),
    **dict.fromkeys(
        (
            _aten.max_pool2d_with_indices.default,
            _aten.avg_pool2d.default,
            _aten._adaptive_avg_pool2d.default,
            _aten.upsample_nearest2d.default,
            _aten.upsample_bilinear2d.default,
        ),
        _pool(2),
    ),
    **dict.fromkeys(
        (_aten.max_pool3d_with_indices.default, _aten.avg_pool3d.default, _aten._adaptive_avg_pool3d.default), _pool(3)
    ),
    _aten.constant_pad_nd.default: _pad,
    _aten.embedding.default: _embedding,
    **dict.fromkeys((_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default), _product),
    _aten.convolution.default: _convolution,
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
}
