"""Axes that hold the columns of a contraction, and constants that are joined along them."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.ir.expr import Expr, const, recombine, var
from effc.compiler.pipeline.graph import Graph, GraphInput, JoinedPart, Op, Tensor
from effc.compiler.pipeline.views import Index, chain, source_index


def axis_of(index: Index, dim: int) -> int | None:
    """The axis along which ``index`` runs over dim ``dim`` and nothing else; None where it does not vary with it, -1 where otherwise."""
    name = f"d{dim}"
    axes = [i for i, e in enumerate(index) if name in e.variables()]
    if not axes:
        return None
    return axes[0] if len(axes) == 1 and index[axes[0]] == var(name) else -1


def moved_axis(view: Op, axis: int) -> int | None:
    """The axis of a view's result that is ``axis`` of its source, whole; None where there is none."""
    source, result = view.operands[0].sizes, view.results[0].sizes
    match view.kind:
        case "cast":
            return axis
        case "expand":
            wide = [i for i in view.attributes["groups"][axis] if result[i].constant != 1]
            return wide[0] if len(wide) == 1 else None
        case "collapse":
            groups = view.attributes["groups"]
            found = next(i for i, g in enumerate(groups) if axis in g) if groups else None
            alone = found is not None and all(source[i].constant == 1 for i in groups[found] if i != axis)
            return found if alone else None
        case "remap":
            place = view.attributes["map"][axis]
            axes = [i for i in range(len(result)) if place == var(f"d{i}")]
            return axes[0] if axes else None
    return None


def resized(sizes: Sequence[Expr], axis: int, size: int) -> tuple[Expr, ...]:
    return tuple(const(size) if i == axis else s for i, s in enumerate(sizes))


class Constants:
    """The inputs of a graph that no call changes, and what is joined of them, which become further inputs."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._inputs = {graph.inputs[i].tensor: graph.inputs[i] for i in graph.constants()}
        self._known: dict[tuple[object, ...], Tensor] = {}

    def holds(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is a view of a constant whose elements lie at constant strides."""
        return chain(tensor)[0] in self._inputs and self._part(tensor) is not None

    def is_sparse(self, tensor: Tensor) -> bool:
        """Whether something is known of the zeros of a constant."""
        return self._inputs[chain(tensor)[0]].sparsity is not None

    def joined(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """The input that holds ``tensors``, constants, one behind the other along ``axis``."""
        parts = [self._part(t) for t in tensors]
        first = parts[0]
        assert first is not None, "holds() says whether a tensor is a constant"
        rest = sorted((i for i in range(len(first.sizes)) if i != axis), key=lambda i: (-first.strides[i], i))
        order = [axis, *rest]
        ordered = tuple(
            JoinedPart(p.tensor, p.offset, tuple(p.sizes[i] for i in order), tuple(p.strides[i] for i in order))
            for p in parts
            if p is not None
        )
        key = (tuple(order), ordered)
        if key not in self._known:
            width = sum(part.sizes[0] for part in ordered)
            sizes = resized(tensors[0].sizes, axis, width)
            strides, step = [const(1)] * len(sizes), 1
            for i in reversed(order):
                strides[i] = const(step)
                step *= sizes[i].constant or 0
            result = Tensor("+".join(t.name for t in tensors), tensors[0].dtype, sizes)
            self._graph.inputs.append(GraphInput(result, tuple(strides), "joined", parts=ordered))
            self._known[key] = result
        return self._known[key]

    def _part(self, tensor: Tensor) -> JoinedPart | None:
        root, views = chain(tensor)
        ranges = {f"d{i}": size for i, size in enumerate(tensor.sizes)}
        at = source_index(views, tuple(var(f"d{i}") for i in range(len(tensor.sizes))), ranges)
        address = const(0)
        for e, stride in zip(at, self._inputs[root].strides, strict=True):
            address = address + e * stride
        address = recombine(address)
        steps = [address.coefficient(f"d{i}") for i in range(len(tensor.sizes))]
        offset = address.substitute({f"d{i}": const(0) for i in range(len(tensor.sizes))}).constant
        strides = tuple(s.constant for s in steps if s is not None and s.constant is not None and s.constant >= 0)
        sizes = tuple(s.constant for s in tensor.sizes if s.constant is not None)
        if offset is None or not len(strides) == len(sizes) == len(tensor.sizes):
            return None
        return JoinedPart(root, offset, sizes, tuple(s for s in strides if s is not None))
