"""Fusion: which compute operations share a kernel, and at which coordinates each of them is evaluated there.

A ``Group`` becomes one kernel. Its dims are the iteration space of the operation that founded it; every other member runs at
coordinates that are ``Expr`` over those dims, so that a consumer which sees its producer through reshapes and transposes still
joins it. A member is *inner* (evaluated at every point of parallel x reduction dims) or *outer* (once for each parallel point).

An operation joins a producer's group when every value it takes from the group is taken exactly at the coordinates where the
group computes it: nothing is computed twice. Other pointwise producers that nothing else reads come with it (`_absorb`).
Operations that read no tensor (constants, iota, masks from indices) belong to no group; they are evaluated where they are used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from effc.compiler.ir.expr import Expr, const, product, recombine, var
from effc.compiler.pipeline.graph import Graph, Op, Tensor
from effc.compiler.pipeline.views import Index, chain, forward, readers, source_index

#: A reduction takes its producers along only where enough parallel points are left to thread over, or little work is.
_MIN_PARALLEL = 16
_SMALL = 1 << 15
#: Beyond this many members registers and instruction cache suffer more than memory traffic is saved (a cap against odd graphs).
_MAX_MEMBERS = 48


@dataclass(eq=False)
class Group:
    """Operations of one kernel; ``coords`` maps each member's loop dims to ``Expr`` over the group's ``d0, d1, …``."""

    number: int
    kind: str
    dims: tuple[Expr, ...]
    reduction: frozenset[int]
    coords: dict[Op, Index] = field(default_factory=dict)
    ancestors: int = 0  # bit set of group numbers, transitive

    @property
    def ops(self) -> list[Op]:
        return list(self.coords)

    @property
    def ranges(self) -> dict[str, Expr]:
        return {f"d{i}": size for i, size in enumerate(self.dims)}

    def result_index(self, tensor: Tensor) -> Index:
        """Where a member's result stands, in the group's coordinates."""
        op = tensor.producer
        assert op is not None
        values = {f"d{i}": e for i, e in enumerate(self.coords[op])}
        return tuple(e.substitute(values) for e in op.result_maps[op.results.index(tensor)])


@dataclass
class Fusion:
    """The groups in the order of their founding, and the group of each member."""

    groups: list[Group] = field(default_factory=list)
    of: dict[Op, Group] = field(default_factory=dict)
    count: int = 0  # of all that were founded, those that others absorbed too

    def closure(self, groups: int) -> int:
        """A bit set of groups with all their ancestors."""
        found = groups
        for group in self.groups:
            if groups >> group.number & 1:
                found |= group.ancestors
        return found


def is_free(op: Op) -> bool:
    """Whether an operation reads no tensor, so that it is evaluated where it is used."""
    return op.kind == "fill" or (op.kind == "generic" and not op.operands)


def fuse(graph: Graph) -> Fusion:
    """Group the compute operations of ``graph``."""
    found, kept = Fusion(), {chain(o.tensor)[0] for o in graph.outputs}
    # what each op depends on, as a bit set of groups
    depends: dict[Op, int] = {}
    for op in graph.ops:
        depends[op] = 0
        for tensor in op.operands:
            if tensor.producer is not None:
                depends[op] |= depends[tensor.producer]
        if not op.is_compute or is_free(op):
            continue
        group = _best_group(op, found, depends)
        if group is None:
            group = _found(op, found.count)
            found.groups.append(group)
            found.count += 1
        found.of[op] = group
        for other in sorted(_producer_groups(op, found) - {group}, key=lambda g: g.number):
            if _absorb(op, group, other, found, kept):
                depends[op] &= ~(1 << other.number)
        group.ancestors |= found.closure(depends[op]) & ~(1 << group.number)
        depends[op] = 1 << group.number
        _propagate(found, group)
    return found


def _propagate(found: Fusion, changed: Group) -> None:
    """A group that gained ancestors passes them to those that depend on it."""
    for group in found.groups:
        if group.ancestors >> changed.number & 1:
            group.ancestors |= changed.ancestors


def _found(op: Op, number: int) -> Group:
    kind = "loops" if op.kind in ("generic", "argreduce") else op.kind
    group = Group(number, kind, op.dims, frozenset(op.reduction_dims))
    group.coords[op] = _identity(op.dims)
    return group


def _identity(dims: tuple[Expr, ...]) -> Index:
    """Each dim's own variable; 0 for a dim of size 1, so that equal positions are equal expressions."""
    return tuple(const(0) if size.constant == 1 else var(f"d{i}") for i, size in enumerate(dims))


def _best_group(op: Op, found: Fusion, depends: dict[Op, int]) -> Group | None:
    """The latest group of a producer that takes ``op``; it is then a member."""
    if op.kind not in ("generic", "argreduce"):
        return None
    for group in sorted(_producer_groups(op, found), key=lambda g: -g.number):
        others = 0
        for tensor in op.operands:
            producer = chain(tensor)[0].producer
            if producer is not None and found.of.get(producer) is not group:
                others |= depends[producer]
        if found.closure(others) >> group.number & 1 or len(group.coords) >= _MAX_MEMBERS:
            continue  # another operand needs the group's results first
        if _join(op, group):
            return group
    return None


def _producer_groups(op: Op, found: Fusion) -> set[Group]:
    roots = (chain(t)[0].producer for t in op.operands)
    return {found.of[p] for p in roots if p is not None and p in found.of}


def _join(op: Op, group: Group) -> bool:
    """Make ``op`` a member where that is right and pays; False leaves the group as it was."""
    if group.kind not in ("loops", "contract", "conv"):
        return False
    reduces = bool(op.reduction_dims)
    if reduces and group.kind != "loops":
        return False
    taken = list(_taken(op, group))
    if not taken:
        return False
    coords = _unify(op, group, taken)
    if coords is None and reduces and not group.reduction:
        return _reanchor(op, group, taken)
    if coords is None or not _consistent(op, group, coords, taken):
        return False
    return _admit(op, group, coords)


def _taken(op: Op, group: Group) -> Iterable[tuple[Index, Tensor, Tensor, list[Op]]]:
    """(map, operand, root, views) of each operand that the group computes."""
    plain = op.attributes.get("captured", len(op.operands))
    for i, tensor in enumerate(op.operands):
        root, views = chain(tensor)
        if root.producer in group.coords:
            if i >= plain:
                yield (), tensor, root, views  # gathered: no position is known
            else:
                yield op.maps[i], tensor, root, views


def _unify(op: Op, group: Group, taken: list[tuple[Index, Tensor, Tensor, list[Op]]]) -> Index | None:
    """The coordinates of ``op``'s loop dims, from where its operands stand in the group."""
    ranges = group.ranges
    found: dict[str, Expr] = {}
    for amap, tensor, root, views in taken:
        if not amap and tensor.sizes:
            return None
        index: Index | None = group.result_index(root)
        for view in views:
            index = forward(view, index, ranges) if index is not None else None
        if index is None:
            continue
        for e, position in zip(amap, index, strict=True):
            names = e.variables()
            alone = len(names) == 1 and e == var(next(iter(names)))
            if alone and recombine(found.setdefault(str(e), position) - position) != const(0):
                return None
    missing = [i for i in range(len(op.dims)) if f"d{i}" not in found]
    spare = sorted(group.reduction - {int(n[1:]) for e in found.values() for n in e.variables() if n[0] == "d"})
    for i in missing:
        if op.dims[i].constant == 1:
            found[f"d{i}"] = const(0)
        elif spare and group.dims[spare[0]] == op.dims[i] and group.kind == "loops":
            found[f"d{i}"] = var(f"d{spare.pop(0)}")
        else:
            return None
    return tuple(found[f"d{i}"] for i in range(len(op.dims)))


def _consistent(op: Op, group: Group, coords: Index, taken: list[tuple[Index, Tensor, Tensor, list[Op]]]) -> bool:
    """Whether each value is taken exactly where the group has it."""
    ranges = group.ranges
    values = {f"d{i}": e for i, e in enumerate(coords)}
    for amap, _, root, views in taken:
        index = source_index(views, tuple(e.substitute(values, ranges) for e in amap), ranges)
        if any(recombine(a - b) != const(0) for a, b in zip(index, group.result_index(root), strict=True)):
            return False
    return True


def _admit(op: Op, group: Group, coords: Index) -> bool:
    """Check the space that ``op`` spans in the group against what it is, and add it."""
    wide = {i for i, size in enumerate(group.dims) if size.constant != 1}
    used = wide & {int(n[1:]) for e in coords for n in e.variables() if n[0] == "d"}
    parallel = wide - group.reduction
    summed = [coords[i] for i in op.reduction_dims if op.dims[i].constant != 1]
    reduces = [int(n[1:]) for e in summed for n in e.variables()]
    if product(op.dims) != product(group.dims[i] for i in sorted(used)):
        return False
    if not op.reduction_dims:
        inner = used == wide and group.kind == "loops"
        if not (used == parallel or inner):
            return False
        group.coords[op] = coords
        return True
    if used != wide or [str(e) for e in summed] != [f"d{r}" for r in reduces]:
        return False
    kept = {n for i in op.parallel_dims for n in coords[i].variables()}
    if kept & {f"d{r}" for r in reduces}:
        return False
    if group.reduction:
        if set(reduces) != group.reduction & wide:
            return False
    elif not _reduction_pays(product(group.dims[i] for i in parallel - set(reduces)), product(group.dims)):
        return False
    group.reduction = group.reduction | frozenset(reduces)
    group.coords[op] = coords
    return True


def _absorb(op: Op, group: Group, other: Group, found: Fusion, kept: set[Tensor]) -> bool:
    """Let the pointwise group ``other``, whose values only ``op`` reads, a member of ``group``, become part of that; whether it does.

    It cannot depend on ``group``: then ``op`` would not have joined (`_best_group`).
    """
    pointwise = all(g.kind == "loops" and not g.reduction for g in (group, other))
    if not pointwise or len(group.coords) + len(other.coords) > _MAX_MEMBERS:
        return False
    members = {*other.coords, op}
    results = [t for member in other.coords for t in member.results]
    if any(t in kept or not members.issuperset(readers(t)) for t in results):
        return False
    taken, ranges = list(_taken(op, other)), group.ranges
    at = {f"d{i}": e for i, e in enumerate(group.coords[op])}
    values: dict[str, Expr] = {}
    for amap, tensor, root, views in taken:
        if not amap and tensor.sizes:
            return False
        index = source_index(views, tuple(e.substitute(at, ranges) for e in amap), ranges)
        for mine, theirs in zip(other.result_index(root), index, strict=True):
            if mine != const(0) and str(mine) not in other.ranges:
                return False
            wanted = const(0) if mine == const(0) else values.setdefault(str(mine), theirs)
            if recombine(wanted - theirs) != const(0):
                return False
    wide = {f"d{i}" for i, size in enumerate(other.dims) if size.constant != 1}
    if wide - values.keys() or product(other.dims) != product(group.dims):
        return False
    last = group.coords.pop(op)
    for member, coords in other.coords.items():
        group.coords[member] = tuple(recombine(e.substitute(values, ranges)) for e in coords)
        found.of[member] = group
    group.coords[op] = last
    found.groups.remove(other)
    group.ancestors |= other.ancestors
    return True


def _reduction_pays(parallel: Expr, total: Expr) -> bool:
    small = total.constant is not None and total.constant <= _SMALL
    return small or parallel.constant is None or parallel.constant >= _MIN_PARALLEL


def _reanchor(op: Op, group: Group, taken: list[tuple[Index, Tensor, Tensor, list[Op]]]) -> bool:
    """Let a reduction that sees a pointwise group through a reshape set the group's dims (group norm: split channels)."""
    amap, _, root, views = taken[0]
    ranges = {f"d{i}": size for i, size in enumerate(op.dims)}
    index = source_index(views, amap, ranges)
    names = [str(e) for e in group.result_index(root)]
    wide = [f"d{i}" for i, size in enumerate(group.dims) if size.constant != 1]
    if sorted(n for n in names if n != "0") != wide or product(op.dims) != product(group.dims):
        return False
    values = {n: e for n, e in zip(names, index, strict=True) if n != "0"}
    parallel = product(op.dims[i] for i in op.parallel_dims)
    if not _reduction_pays(parallel, product(op.dims)):
        return False
    before = group.dims, dict(group.coords)
    group.coords = {o: tuple(recombine(e.substitute(values, ranges)) for e in c) for o, c in group.coords.items()}
    group.dims = op.dims
    identity = _identity(op.dims)
    if not _consistent(op, group, identity, taken):
        group.dims, group.coords = before
        return False
    group.reduction = frozenset(op.reduction_dims)
    group.coords[op] = identity
    return True
