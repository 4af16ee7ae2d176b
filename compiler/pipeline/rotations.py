"""Rotary position embeddings: what follows a concatenation of halves of one tensor is computed half by half.

``x * cos + concat(-x[h:], x[:h]) * sin``, as models write it (Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding",
2021), would be four kernels: each half, ``x * cos``, and the sum, which reads both. With the pointwise operations moved before the
concatenation each half is one kernel, which writes its part of the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from effc.compiler.ir.expr import Expr, const, product, var
from effc.compiler.pipeline.graph import Graph, Op, Tensor, replace_ops

#: Neighbours in memory that a part must have, to be worth vectors of its own.
_LEAST = 16
#: Instructions of a body that look at more than one element of each operand.
_NOT_POINTWISE = frozenset({"index", "extract", "check", "accumulator"})


def split_rotations(graph: Graph) -> None:
    """Move what follows each such concatenation before it."""
    kept = {o.tensor for o in graph.outputs}
    for op in list(graph.ops):
        if op.kind == "concat" and _of_one_tensor(op):
            steps = _steps(op.results[0], kept)
            made = _Halves(op, steps, kept).run() if steps else None
            if made is not None:
                ops, gone = made
                replaced: dict[Op, Sequence[Op]] = {**dict.fromkeys([op, *gone, *steps], ()), steps[-1]: ops}
                replace_ops(graph, replaced.get, lambda _: None)


def _of_one_tensor(concat: Op) -> bool:
    """Whether its parts are all made of slices of one tensor, and of nothing else that is computed."""
    roots = {_root(t) for t in concat.operands}
    return len(concat.operands) > 1 and len(roots) == 1


def _root(tensor: Tensor) -> Tensor:
    """What a tensor is made of by views and operations on one operand."""
    op = tensor.producer
    while op is not None and len(op.operands) == 1 and (op.is_view or _is_pointwise(op)):
        tensor = op.operands[0]
        op = tensor.producer
    return tensor


def _is_pointwise(op: Op) -> bool:
    return (
        op.kind == "generic"
        and len(op.results) == 1
        and not op.reduction_dims
        and op.body is not None
        and all(op.body.instrs[p].op not in _NOT_POINTWISE for p in op.body.needed())
    )


def _is_plain(op: Op) -> bool:
    """Whether a pointwise operation gives the element at each point of its dimensions."""
    return _is_pointwise(op) and all(e == var(f"d{i}") for i, e in enumerate(op.result_maps[0]))


def _steps(tensor: Tensor, kept: set[Tensor]) -> list[Op]:
    """The chain of pointwise operations behind ``tensor``: each alone reads, element by element, what the one before it gives."""
    found: list[Op] = []
    while tensor not in kept and len(tensor.users) == 1:
        (op,) = tensor.users
        places = [n for n, t in enumerate(op.operands) if t is tensor]
        if not _is_plain(op) or len(places) != 1 or op.maps[places[0]] != op.result_maps[0]:
            break
        found.append(op)
        tensor = op.results[0]
    return found


class _Halves:
    """``steps`` behind ``concat``, for each of its parts."""

    def __init__(self, concat: Op, steps: Sequence[Op], kept: set[Tensor]) -> None:
        self.concat, self.steps, self.kept = concat, steps, kept
        self.axis = int(concat.attributes["axis"])
        self.made: list[Op] = []
        self.gone: dict[Op, None] = {}

    def run(self) -> tuple[list[Op], list[Op]] | None:
        """The operations that take the place of all, and those whose only reader is gone; None where an operand cannot be divided."""
        sizes = [t.sizes[self.axis].constant for t in self.concat.operands]
        if any((product(t.sizes[self.axis :]).constant or 0) < _LEAST for t in self.concat.operands):
            return None
        parts, start = [], 0
        for source, size in zip(self.concat.operands, sizes, strict=True):
            if size is None:
                return None
            values: dict[Tensor, Tensor] = {self.concat.results[0]: source}
            for op in self.steps:
                part = self._part(op, start, size, values)
                if part is None:
                    return None
                values[op.results[0]] = part
            parts.append(values[self.steps[-1].results[0]])
            start += size
        last = self.steps[-1]
        joined = Op("concat", parts, list(last.results), last.location, attributes={"axis": self.axis})
        last.results[0].producer = joined
        return [*self.made, joined], list(self.gone)

    def _part(self, op: Op, start: int, size: int, values: Mapping[Tensor, Tensor]) -> Tensor | None:
        """Of the result of a pointwise operation the ``size`` elements from ``start`` on; ``values``: such parts of operands."""
        name = f"d{self.axis}"
        operands = []
        for tensor, amap in zip(op.operands, op.maps, strict=True):
            value = values.get(tensor) or self._divided(tensor, op, amap, name, start, size)
            if value is None:
                return None
            operands.append(value)
        sizes = _with(op.dims, self.axis, const(size))
        result = Tensor("", op.results[0].dtype, _with(op.results[0].sizes, self.axis, const(size)))
        made = Op(
            "generic", operands, [result], op.location, sizes, op.iterators, op.maps, op.result_maps, op.body, dict(op.attributes)
        )  # fmt: skip
        result.producer = made
        self.made.append(made)
        return result

    def _divided(
        self, tensor: Tensor, reader: Op, amap: tuple[Expr, ...], name: str, start: int, size: int
    ) -> Tensor | None:
        """The part of an operand that a part of its reader reads."""
        places = [p for p, e in enumerate(amap) if name in e.variables()]
        if not places:
            return tensor
        if len(places) > 1 or amap[places[0]] != var(name):
            return None
        producer, (place,) = tensor.producer, places
        alone = tensor not in self.kept and set(tensor.users) == {reader}
        if producer is not None and alone and place == self.axis and _is_plain(producer) and producer.operands:
            self.gone[producer] = None
            return self._part(producer, start, size, {})
        result = Tensor("", tensor.dtype, _with(tensor.sizes, place, const(size)))
        rank = len(tensor.sizes)
        made = Op("slice", [tensor], [result], reader.location)
        made.attributes = {
            "offsets": _with((const(0),) * rank, place, const(start)), "strides": (const(1),) * rank, "dropped": (),
        }  # fmt: skip
        result.producer = made
        self.made.append(made)
        return result


def _with(values: Sequence[Expr], place: int, value: Expr) -> tuple[Expr, ...]:
    return (*values[:place], value, *values[place + 1 :])
