"""Contractions of one activation with several constant weights become one, over weights that lie side by side.

::

    q = x @ Wq + bq            qkv = x @ [Wq Wk Wv] + [bq bk bv]
    k = x @ Wk + bk     →      q, k, v = columns of qkv
    v = x @ Wv + bv

One call instead of several, one pass over the activation, and more columns to share among threads. No sum changes its order. Weights are
joined where they are packed (`ir.program.Joined`), scales and zero points of codes likewise; pointwise operations that do the same to
every result are merged too, and stay in the kernel. What follows one result alone leaves the kernel, so that the results are stored
and read once more: where that costs more than the calls saved, contractions stay apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from effc.compiler.ir.expr import Expr, const, product, var
from effc.compiler.ir.spec import ITEM_SIZE
from effc.compiler.pipeline.columns import Constants, axis_of, moved_axis, resized
from effc.compiler.pipeline.graph import CONTRACTIONS, Graph, Op, Tensor
from effc.compiler.pipeline.vanishing import is_masked
from effc.compiler.pipeline.views import chain, readers

#: Bytes that are read in the time that a call takes by itself: about 5 µs, on two Emerald Rapids cores that read 25 GB/s.
CALL_BYTES = 1 << 17


def merge_contractions(graph: Graph) -> None:
    """Merge the contractions of ``graph``, whose static part is cut off (`prepare`)."""
    constants = Constants(graph)
    for branches in _found(graph, constants):
        _Merge(graph, constants, branches).run()


@dataclass(frozen=True)
class _Branch:
    """One of the contractions. ``left``: number of the operand that all share; ``column``: the dim that the others alone have."""

    op: Op
    left: int
    column: int

    @property
    def width(self) -> int:
        return self.op.dims[self.column].constant or 0

    def likeness(self) -> tuple[object, ...]:
        """Equal for contractions that differ in their constants and their number of columns only."""
        op = self.op
        dims = tuple(size for i, size in enumerate(op.dims) if i != self.column)
        others = tuple(t.dtype for t in op.operands)
        attributes = sorted((k, str(v)) for k, v in op.attributes.items())
        return (
            _place(op.operands[self.left]), self.left, self.column, dims, others, op.iterators, op.maps, op.result_maps,
            op.body, op.results[0].dtype, tuple(attributes),
        )  # fmt: skip


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same views of the same one."""
    root, views = chain(tensor)
    return (root, *((v.kind, v.results[0].sizes, str(sorted(v.attributes.items()))) for v in views))


def _found(graph: Graph, constants: Constants) -> list[list[_Branch]]:
    """Runs of contractions that can be merged, with no other contraction between them: their results do not wait long for their readers."""
    returned = {chain(o.tensor)[0] for o in graph.outputs}
    runs: list[list[_Branch]] = []
    for op in graph.ops:
        if op.kind not in (*CONTRACTIONS, "attention"):
            continue
        branch = _branch(op, constants)
        alike = branch is not None and runs and runs[-1] and runs[-1][0].likeness() == branch.likeness()
        if branch is None or _result_of(op) & returned:
            runs.append([])
        elif alike:
            runs[-1].append(branch)
        else:
            runs.append([branch])
    return [run for run in runs if len(run) > 1]


def _result_of(op: Op) -> set[Tensor]:
    """The result, and what is computed of it alone, point by point: it may be stored in its stead."""
    found: set[Tensor] = set()
    pending = list(op.results)
    while pending:
        tensor = pending.pop()
        found.add(tensor)
        for user in readers(tensor):
            if user.kind == "generic" and not user.reduction_dims and user.results[0] not in found:
                pending += user.results
    return found


def _branch(op: Op, constants: Constants) -> _Branch | None:
    if op.kind != "contract":
        return None
    changing = [i for i, t in enumerate(op.operands) if not constants.holds(t)]
    if len(changing) != 1 or changing[0] > 1:
        return None
    (left,) = changing
    if constants.is_sparse(op.operands[1 - left]):
        return None  # its kernel reads its own blocks
    names = {n for e in op.maps[left] for n in e.variables()}
    right = {n for e in op.maps[1 - left] for n in e.variables()}
    columns = [i for i in op.parallel_dims if f"d{i}" in right - names and op.dims[i].constant != 1]
    if len(columns) != 1 or not op.dims[columns[0]].constant:
        return None
    (column,) = columns
    single = product(op.dims[i] for i in op.parallel_dims if i != column).constant == 1
    if single and {t.dtype for t in op.operands} in ({"f32"}, {"bf16"}) and is_masked(op):
        return None  # its kernel makes the sums that are needed
    maps = [*(m for i, m in enumerate(op.maps) if i != left), *op.result_maps]
    if any(axis_of(m, column) == -1 for m in maps) or axis_of(op.result_maps[0], column) is None:
        return None
    return _Branch(op, left, column)


@dataclass
class _Merge:
    graph: Graph
    constants: Constants
    branches: list[_Branch]
    #: What each operation of the graph is replaced by, in its place; None: nothing.
    made: dict[Op, list[Op]] = field(default_factory=dict)

    def run(self) -> None:
        first = self.branches[0]
        steps = [[b.op for b in self.branches]]
        axis = axis_of(first.op.result_maps[0], first.column)
        assert axis is not None, "_branch has seen to it"
        axes = [axis]
        while (following := self._following([op.results[0] for op in steps[-1]], axes[-1])) is not None:
            steps.append(following[0])
            axes.append(following[1])
        results = [op.results[0] for op in steps[-1]]
        if not self._pays(results):
            return
        merged: Tensor | None = None
        for ops, axis in zip(steps, axes, strict=True):
            op = self._merged(ops, axis, merged)
            self.made.update({o: [] for o in ops[1:]})
            self.made[ops[0]] = [op]
            merged = op.results[0]
        assert merged is not None, "there is one step at least"
        self.made[steps[-1][0]] += _slices(merged, results, axes[-1])
        self._replace()

    def _pays(self, results: Sequence[Tensor]) -> bool:
        """Whether the calls and passes over the activation that are saved cost more than storing results that kernels would have used."""
        op = self.branches[0].op
        loose = [
            b.width
            for b, t in zip(self.branches, results, strict=True)
            if any(r.kind == "generic" and not r.reduction_dims for r in readers(t))
        ]
        if not loose:
            return True
        left = op.operands[self.branches[0].left]
        rows = product(size for i, size in enumerate(op.dims) if i in op.parallel_dims and i != self.branches[0].column)
        if rows.constant is None or (activation := product(left.sizes).constant) is None:
            return False
        saved = (len(self.branches) - 1) * (activation * ITEM_SIZE[left.dtype] + CALL_BYTES)
        return 2 * rows.constant * sum(loose) * ITEM_SIZE[results[0].dtype] <= saved

    # -- what follows every result alike ----------------------------------------------------------------------------
    def _following(self, results: Sequence[Tensor], axis: int) -> tuple[list[Op], int] | None:
        """The only reader of each of ``results``, where all do the same, and the axis of the columns in what they give."""
        returned = {o.tensor for o in self.graph.outputs}
        if any(t in returned or len(t.users) != 1 for t in results):
            return None
        ops = [t.users[0] for t in results]
        first = ops[0]
        if len(set(ops)) < len(ops) or any(op.kind != first.kind or len(op.results) != 1 for op in ops):
            return None
        if first.is_view:
            found = moved_axis(first, axis)
            alike = all(_view_likeness(op, found) == _view_likeness(first, found) for op in ops)
            return (ops, found) if found is not None and alike else None
        return self._pointwise(ops, results, axis)

    def _pointwise(self, ops: list[Op], results: Sequence[Tensor], axis: int) -> tuple[list[Op], int] | None:
        first = ops[0]
        if first.kind != "generic" or first.reduction_dims or first.body is None or len(first.result_maps) != 1:
            return None
        if first.attributes.get("captured", len(first.operands)) != len(first.operands):
            return None
        if any(i.op in ("index", "extract", "check") for i in first.body.instrs):
            return None
        own = first.operands.index(results[0])
        place = first.maps[own][axis]
        columns = [i for i in range(len(first.dims)) if place == var(f"d{i}")]
        if not columns or (found := axis_of(first.result_maps[0], columns[0])) in (None, -1):
            return None
        (column,) = columns

        def likeness(op: Op) -> tuple[object, ...]:
            dims = tuple(size for i, size in enumerate(op.dims) if i != column)
            attributes = sorted((k, str(v)) for k, v in op.attributes.items())
            types = tuple(t.dtype for t in (*op.operands, *op.results))
            return dims, op.iterators, op.maps, op.result_maps, op.body, types, tuple(attributes)

        if any(likeness(op) != likeness(first) for op in ops):
            return None
        for number, amap in enumerate(first.maps):
            given = [op.operands[number] for op in ops]
            along = axis_of(amap, column)
            if given == list(results):
                if along != axis:
                    return None
            elif any(t in results for t in given) or along == -1:
                return None
            elif along is None:
                if len({_place(t) for t in given}) > 1:
                    return None
            elif not all(self.constants.holds(t) for t in given):
                return None
        assert found is not None, "checked above"
        return ops, found

    # -- making -----------------------------------------------------------------------------------------------------
    def _merged(self, ops: Sequence[Op], axis: int, source: Tensor | None) -> Op:
        """One operation for ``ops``. ``axis``: of the columns in its result; ``source``: what the results that they read have become."""
        first = ops[0]
        width = sum(op.results[0].sizes[axis].constant or 0 for op in ops)
        result = Tensor(first.results[0].name, first.results[0].dtype, resized(first.results[0].sizes, axis, width))
        if first.is_view:
            assert source is not None, "the first step is a contraction"
            made = replace(first, operands=[source], results=[result])
        else:
            name = str(first.result_maps[0][axis])
            column = int(name[1:])
            operands = []
            for number, amap in enumerate(first.maps):
                given, along = [op.operands[number] for op in ops], axis_of(amap, column)
                if along is None:
                    operands.append(given[0])
                elif self.constants.holds(given[0]):
                    operands.append(self.constants.joined(given, along))
                else:
                    assert source is not None, "no operand of the contractions but constants has columns"
                    operands.append(source)
            made = replace(first, operands=operands, results=[result], dims=resized(first.dims, column, width))
        result.producer = made
        return made

    def _replace(self) -> None:
        """Put what was made into the graph."""
        graph = self.graph
        graph.ops[:] = [new for op in graph.ops for new in self.made.get(op, [op])]
        for op in self.made:
            for tensor in op.operands:
                tensor.users = [u for u in tensor.users if u is not op]
        for op in (new for made in self.made.values() for new in made):
            for tensor in op.operands:
                tensor.users.append(op)


def _view_likeness(op: Op, axis: int | None) -> tuple[Any, ...]:
    sizes = tuple(size for i, size in enumerate(op.results[0].sizes) if i != axis)
    return op.kind, sizes, sorted((k, str(v)) for k, v in op.attributes.items())


def _slices(source: Tensor, results: Sequence[Tensor], axis: int) -> list[Op]:
    """Views of ``source`` that take the place of what computed ``results``."""
    made, start = [], 0
    for result in results:
        zeros: list[Expr] = [const(0)] * len(result.sizes)
        zeros[axis] = const(start)
        attributes = {"offsets": tuple(zeros), "strides": (const(1),) * len(zeros), "dropped": frozenset[int]()}
        made.append(
            Op("slice", [source], [result], source.producer.location if source.producer else "", attributes=attributes)
        )
        result.producer = made[-1]
        start += result.sizes[axis].constant or 0
    return made
