"""Placement: where each tensor that is stored lies in memory.

A layout is nothing but the order of strides of a buffer, and padding between crowded rows (`padding`): a convolution's result is stored
channels-last because its kernel likes it so, pointwise consumers follow their inputs, and nothing is ever reordered except where the
graph's border asks for it. Operands of ``pad`` and ``concat`` are computed right into their part of the result's buffer; an update of
an input writes into the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from effc.compiler.ir.expr import Expr, as_expr, const, product, recombine
from effc.compiler.pipeline.fusion import Fusion, Group, is_free
from effc.compiler.pipeline.graph import ASSEMBLIES, CONTRACTIONS, Graph, GraphOutput, Op, Tensor
from effc.compiler.pipeline.padding import arranged, row_padding
from effc.compiler.pipeline.views import Index, chain, permutation, readers, source_index

#: Operations whose result is their last operand with some elements changed.
_UPDATES = ("insert", "scatter")
#: Operations between a convolution and what keeps its layout: a batch norm, an activation, and a quantization with its reverse are 15.
_NEAR = 32
#: Elements of half a vector of 512 bits of float32: of several dims that might be lanes, those shorter are not.
_HALF = 8


@dataclass(frozen=True)
class Base:
    """A region of memory: ``input``, ``output`` or ``buffer`` (in the arena) number ``index``."""

    kind: str
    index: int


@dataclass(frozen=True)
class Placement:
    """Element ``i`` of a tensor lies at ``offset + sum(i[k] * strides[k])`` elements from the start of ``base``."""

    base: Base
    offset: Expr
    strides: tuple[Expr, ...]

    def address(self, index: Index) -> Expr:
        """Elements from the placement's own start (``offset`` apart)."""
        total = const(0)
        for i, stride in zip(index, self.strides, strict=True):
            total = total + i * stride
        return recombine(total)


@dataclass
class Layout:
    """Placements of inputs and stored tensors, the arena's buffers (dtype and elements), and what must be copied.

    ``copies``: (value, where to, the assembly or update that it completes), in the order in which they must run. ``stand_ins``: where
    a copy of a value lies that kernels read in its stead (see ``factors.py``).
    """

    places: dict[Tensor, Placement] = field(default_factory=dict)
    buffers: list[tuple[str, Expr]] = field(default_factory=list)
    copies: list[tuple[Tensor, Placement, Op | None]] = field(default_factory=list)
    stand_ins: dict[Tensor, Placement] = field(default_factory=dict)

    def buffer(self, tensor: Tensor, order: Sequence[int] | None = None, padding: int = 0) -> Placement:
        """A new buffer in the arena for ``tensor``: dims stored in ``order`` (row-major by default), ``padding`` elements behind rows."""
        strides, elements = arranged(tensor.sizes, range(len(tensor.sizes)) if order is None else order, padding)
        self.buffers.append((tensor.dtype, elements))
        return Placement(Base("buffer", len(self.buffers) - 1), const(0), strides)


def place(graph: Graph, fusion: Fusion) -> Layout:
    """Place every tensor that must be in memory."""
    layout = Layout()
    for i, source in enumerate(graph.inputs):
        layout.places[source.tensor] = Placement(Base("input", i), const(0), source.strides)
    stored = stored_tensors(graph, fusion)
    for i, output in enumerate(graph.outputs):
        _place_output(graph, fusion, layout, output, i)
    for op in reversed(graph.ops):
        if op.kind in ("pad", "concat", "insert"):
            _place_assembly(layout, op, stored)
        elif op.kind == "scatter":
            _place_scatter(layout, op)
    for group in fusion.groups:
        order = _preferred_order(group, layout)
        for op in group.ops:
            for tensor in op.results:
                if tensor in stored and tensor not in layout.places:
                    ranked = _order(tensor, group, order)
                    padding = row_padding(tensor, ranked, group.kind in CONTRACTIONS)
                    layout.places[tensor] = layout.buffer(tensor, ranked, padding)
    for op in graph.ops:
        if is_free(op) and op.results[0] in stored and op.results[0] not in layout.places:
            layout.places[op.results[0]] = layout.buffer(op.results[0])
    return layout


def stored_tensors(graph: Graph, fusion: Fusion) -> set[Tensor]:
    """Tensors that must be in memory: what leaves its group, is gathered from, assembled, or returned."""
    stored: set[Tensor] = {chain(o.tensor)[0] for o in graph.outputs}
    for op in graph.ops:
        group = fusion.of.get(op)
        plain = op.attributes.get("captured", len(op.operands))
        for i, tensor in enumerate(op.operands):
            root = chain(tensor)[0]
            producer = root.producer
            if producer is None or op.is_view:
                continue
            if is_free(producer):
                if not op.is_compute or op.kind not in ("generic", "contract", "conv", "argreduce", "scan", "scatter"):
                    stored.add(root)
            elif group is None or fusion.of.get(producer) is not group or (i >= plain and bool(root.sizes)):
                stored.add(root)
    return stored


def _place_output(graph: Graph, fusion: Fusion, layout: Layout, output: GraphOutput, number: int) -> None:
    root, views = chain(output.tensor)
    if output.mutates is None:
        target = Placement(Base("output", number), const(0), output.strides)
    else:
        target = Placement(Base("input", output.mutates), const(0), graph.inputs[output.mutates].strides)
    strides = strides_before(views, target.strides)
    computed = root.producer is not None and not is_free(root.producer)
    if (
        computed
        and root not in layout.places
        and strides is not None
        and _by_vectors(graph, fusion, root, strides)
        and (output.mutates is None or _writes_in_place(graph, fusion, root, strides, output.mutates))
    ):
        layout.places[root] = Placement(target.base, target.offset, strides)
        return
    layout.copies.append((output.tensor, target, None))


def _by_vectors(graph: Graph, fusion: Fusion, root: Tensor, strides: tuple[Expr, ...]) -> bool:
    """Whether kernels can write ``root`` so by vectors: the lanes of a convolution are channels where it is depthwise or its weights are
    constant. Into other strides (planes of channels) its result is copied, which takes a fraction of what single stores take.
    """
    producer = root.producer
    if producer is not None and producer.kind in ASSEMBLIES:
        return not _comes_from_convolution(root) or len(strides) < 3 or strides[1].constant == 1
    group = fusion.of.get(producer) if producer is not None else None
    if group is None or group.kind != "conv":
        return True
    conv = group.ops[0]
    image, weights = ({name for e in conv.maps[i] for name in e.variables()} for i in (0, 1))
    sizes = {f"d{i}": conv.dims[i].constant for i in conv.parallel_dims if conv.dims[i].constant != 1}
    constant = chain(conv.operands[1])[0] in {graph.inputs[i].tensor for i in graph.constants()}
    lanes = sizes.keys() & weights if constant or not sizes.keys() & weights - image else set()
    lanes = {name for name in lanes if (sizes[name] or _HALF) >= _HALF} or lanes
    along = [s for e, s in zip(group.result_index(root), strides, strict=True) if lanes & e.variables()]
    return not along or any(s.constant == 1 for s in along)


def _writes_in_place(graph: Graph, fusion: Fusion, root: Tensor, strides: tuple[Expr, ...], number: int) -> bool:
    """Whether the producer of ``root`` may write straight into input ``number``: nobody else needs the old value elsewhere."""
    source = graph.inputs[number].tensor
    if root.sizes != source.sizes or strides != graph.inputs[number].strides:
        return False
    producer = root.producer
    assert producer is not None
    read_by = readers(source)
    if producer.kind in _UPDATES:
        while _updates_alone(producer):
            below = producer.operands[-1].producer
            assert below is not None
            producer = below
        new_values = [t for t in producer.operands[:-1] if chain(t)[0] is source]
        return read_by == [producer] and producer.operands[-1] is source and not new_values
    group = fusion.of.get(producer)
    if group is None or group.kind != "loops":
        return False
    target = group.result_index(root)
    for reader in read_by:
        if fusion.of.get(reader) is not group or source not in reader.operands:
            return False
        values = {f"d{i}": e for i, e in enumerate(group.coords[reader])}
        plain = reader.attributes.get("captured", len(reader.operands))
        for i, tensor in enumerate(reader.operands):
            if tensor is source and (i >= plain or tuple(e.substitute(values) for e in reader.maps[i]) != target):
                return False
    return True


def _updates_alone(op: Op) -> bool:
    """Whether the tensor that ``op`` updates is itself an update's result, which nobody else reads."""
    old = op.operands[-1]
    return old.producer is not None and old.producer.kind in _UPDATES and readers(old) == [op] and old.users == [op]


def strides_before(views: Sequence[Op], strides: tuple[Expr, ...]) -> tuple[Expr, ...] | None:
    """Strides of a chain's root such that its last view has ``strides``; None where no strides do that."""
    current: tuple[Expr, ...] | None = strides
    for view in reversed(views):
        if current is None:
            return None
        match view.kind:
            case "cast":
                pass
            case "remap":
                order = permutation(view)
                if order is None:
                    return None
                found = list(current)
                for i, axis in enumerate(order):
                    found[axis] = current[i]
                current = tuple(found)
            case "expand":
                current = _merged(view, current)
            case "collapse":
                current = _spread(view, current)
            case _:
                return None
    return current


def _merged(view: Op, strides: tuple[Expr, ...]) -> tuple[Expr, ...] | None:
    sizes = view.results[0].sizes
    found: list[Expr] = []
    for group in view.attributes["groups"]:
        wide = [i for i in group if sizes[i].constant != 1] or list(group[-1:])
        for outer, inner in pairwise(wide):
            if strides[outer] != strides[inner] * sizes[inner]:
                return None
        found.append(strides[wide[-1]])
    return tuple(found)


def _spread(view: Op, strides: tuple[Expr, ...]) -> tuple[Expr, ...]:
    sizes = view.operands[0].sizes
    found: list[Expr] = []
    for stride, group in zip(strides, view.attributes["groups"], strict=True):
        found.extend(stride * product(sizes[j] for j in group if j > i) for i in group)
    return tuple(found) if found or not sizes else tuple(const(0) for _ in sizes)


def _place_scatter(layout: Layout, op: Op) -> None:
    """A scatter updates its result in place: the old values are copied there first, unless they are there already."""
    result, old = op.results[0], op.operands[-1]
    if result not in layout.places:
        layout.places[result] = layout.buffer(result)
    if _updates_alone(op) and old not in layout.places:
        layout.places[old] = layout.places[result]
    if layout.places.get(old) != layout.places[result]:
        layout.copies.append((old, layout.places[result], op))


def _place_assembly(layout: Layout, op: Op, stored: set[Tensor]) -> None:
    """Place an assembly's result, and its operands into their parts of it (or have them copied there)."""
    result = op.results[0]
    if result not in stored:
        return
    if result not in layout.places:
        layout.places[result] = layout.buffer(result, _assembly_order(op))
    home = layout.places[result]
    for part, offset, strides in parts(op, home):
        target = Placement(home.base, offset, strides)
        if op.kind == "insert":
            if part is op.operands[1] and _updates_alone(op) and part not in layout.places:
                layout.places[part] = home
            if part is op.operands[1] and layout.places.get(part) == home:
                continue  # in place: the destination is already there
            layout.copies.append((part, target, op))
            continue
        root, views = chain(part)
        root_strides = strides_before(views, strides)
        producer = root.producer
        if producer is None or is_free(producer) or root in layout.places or root_strides is None:
            layout.copies.append((part, target, op))
        else:
            layout.places[root] = Placement(home.base, offset, root_strides)


def parts(op: Op, home: Placement) -> list[tuple[Tensor, Expr, tuple[Expr, ...]]]:
    """(operand, offset, strides) of the part of ``home`` that each operand of an assembly fills; an insert's destination first."""
    if op.kind == "pad":
        return [(op.operands[0], home.offset + home.address(op.attributes["low"]), home.strides)]
    if op.kind == "concat":
        axis, position, found = op.attributes["axis"], const(0), []
        for tensor in op.operands:
            found.append((tensor, home.offset + position * home.strides[axis], home.strides))
            position = position + tensor.sizes[axis]
        return found
    source, destination = op.operands
    dropped = op.attributes["dropped"]
    strides = tuple(s * k for s, k in zip(home.strides, op.attributes["strides"], strict=True))
    offset = home.offset + home.address(op.attributes["offsets"])
    return [
        (destination, home.offset, home.strides),
        (source, offset, tuple(s for i, s in enumerate(strides) if i not in dropped)),
    ]


def _assembly_order(op: Op) -> list[int]:
    """Order of dims of a pad's or concat's result: channels-last where its operand comes from a convolution, else row-major."""
    result = op.results[0]
    rank = len(result.sizes)
    if rank >= 3 and any(_comes_from_convolution(t) for t in op.operands):
        return [0, *range(2, rank), 1]
    if rank >= 3 and any(reader.kind == "conv" for reader in readers(result)):
        return [0, *range(2, rank), 1]
    return list(range(rank))


def _comes_from_convolution(tensor: Tensor) -> bool:
    """Whether a tensor is a convolution's result, or a pointwise or pooled function of one (near enough to keep its layout)."""
    pending = [tensor]
    seen: set[Op] = set()
    while pending and len(seen) < _NEAR:
        producer = chain(pending.pop())[0].producer
        if producer is None or producer in seen:
            continue
        if producer.kind == "conv":
            return True
        seen.add(producer)
        pending += [t for t in producer.operands if len(t.sizes) == len(producer.results[0].sizes)]
    return False


def _preferred_order(group: Group, layout: Layout) -> list[int]:
    """The group's dims from outermost to innermost in memory; of a reduction that no operand orders, its parallel dims."""
    parallel = [i for i in range(len(group.dims)) if i not in group.reduction]
    founder = group.ops[0]
    if group.kind == "conv":
        image, weights = ({n for e in founder.maps[i] for n in e.variables()} for i in (0, 1))
        # phases of a transposed one stay beside their places
        places = [i for i in parallel[1:] if f"d{i}" in image - weights]
        channels = [i for i in parallel if f"d{i}" in weights and i < min(places, default=len(group.dims))]
        return [i for i in parallel if i not in channels] + channels
    if group.kind != "loops":
        return parallel
    inside = _operand_order(group, layout, list(range(len(group.dims)))) if group.reduction else None
    return inside or _operand_order(group, layout, parallel) or parallel


def _operand_order(group: Group, layout: Layout, dims: list[int]) -> list[int] | None:
    """``dims`` by falling stride of an operand that varies with all of them; of several, the first that is not row-major."""
    best: list[int] | None = None
    for op in group.ops:
        values = {f"d{i}": e for i, e in enumerate(group.coords[op])}
        for tensor, amap in zip(op.operands, op.maps, strict=False):
            root, views = chain(tensor)
            home = layout.places.get(root)
            if home is None:
                continue
            index = source_index(views, tuple(e.substitute(values) for e in amap), group.ranges)
            address = home.address(index)
            steps = [address.coefficient(f"d{i}") for i in dims]
            known = usual(steps)
            wide = [k for k, i in zip(known, dims, strict=True) if group.dims[i].constant != 1]
            if all(k is not None and k > 0 for k in wide):
                order = sorted(range(len(dims)), key=lambda j: -(known[j] or 0))
                found = [dims[j] for j in order]
                if found != dims:
                    return found
                best = found
    return best


def usual(strides: Sequence[Expr | None]) -> list[int | None]:
    """Numbers by which strides of one tensor are compared. Symbols count as a middling 64, or as more where a divisor would be 0 (a size
    of many windows of a window's size).
    """
    for size in (64, 2**12, 2**20):
        try:
            return [None if s is None else s.evaluate(dict.fromkeys(s.variables(), size)) for s in strides]
        except ZeroDivisionError:
            continue
    return [None for _ in strides]


def _order(tensor: Tensor, group: Group, order: list[int]) -> list[int]:
    """The dims of a stored result in its group's preferred order; a dim that the group has split goes where its outer part is."""
    index = group.result_index(tensor)
    position = {f"d{i}": k for k, i in enumerate(order)}
    ranks = [min((position.get(name, -1) for name in e.variables()), default=-1) for e in index]
    if any(rank < 0 and size.constant != 1 for rank, size in zip(ranks, tensor.sizes, strict=True)):
        return list(range(len(ranks)))
    return sorted(range(len(ranks)), key=lambda k: (ranks[k], k))


def row_major(sizes: tuple[Expr, ...]) -> tuple[Expr, ...]:
    return arranged(sizes, range(len(sizes)))[0]


def extent(sizes: Sequence[Expr], strides: Sequence[Expr]) -> Expr:
    """Elements from the first to past the last of a tensor (for sizes of at least 1)."""
    total = as_expr(1)
    for size, stride in zip(sizes, strides, strict=True):
        total = total + (size - 1) * stride
    return total
