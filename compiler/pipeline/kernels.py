"""From fused groups to ``KernelSpec``: bodies in the kernel's coordinates, addresses, operands.

``KernelBuilder.value(tensor, index)`` is the heart: the value of a tensor at an index, either computed by a member of the group (once,
memoised), or evaluated in place (constants), or loaded from memory through whatever views lie between.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Call, Expr, const, floordiv, recombine, var
from effc.compiler.ir.spec import SHARE, ZEROS, Dim, Instr, KernelSpec, Operand
from effc.compiler.pipeline.borders import bounds
from effc.compiler.pipeline.fusion import Group, is_free
from effc.compiler.pipeline.graph import CONTRACTIONS, Body, Op, Tensor
from effc.compiler.pipeline.placed import Kernel, Site
from effc.compiler.pipeline.placement import Layout, Placement, extent, usual
from effc.compiler.pipeline.roundings import fold_roundings, read_within
from effc.compiler.pipeline.vanishing import chooses_zero, share_of, vanishes
from effc.compiler.pipeline.views import Index, backward, chain, source_index


@dataclass
class KernelBuilder:
    """Builds one kernel over ``dims``, of which ``reduction`` are summed over."""

    layout: Layout
    dims: tuple[Expr, ...]
    reduction: frozenset[int]
    group: Group | None = None
    instrs: list[Instr] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    sizes: list[Expr] = field(default_factory=list)
    _known: dict[Instr, int] = field(default_factory=dict)
    _members: dict[Op, list[int]] = field(default_factory=dict)
    _implicit: set[int] = field(default_factory=set)  # roundings to bf16 that the model did not ask for
    _zeros: set[int] = field(default_factory=set)  # operands in which zeros are to be expected (`vanishing`)
    _share: float | None = None  # of zeros that thresholds make in them, or in results, where it is known

    def __post_init__(self) -> None:
        self.ranges = {f"d{i}": size for i, size in enumerate(self.dims)}

    # -- values -----------------------------------------------------------------------------------------------------
    def value(self, tensor: Tensor, index: Index) -> int:
        """The instruction that holds ``tensor[index]``."""
        if tensor in self.layout.stand_ins:
            return self._load(tensor, self.layout.stand_ins[tensor], index)
        root, views = chain(tensor)
        inside = self._inside(views, index)
        index = source_index(views, index, self.ranges)
        producer = root.producer
        if producer is not None and self.group is not None and producer in self.group.coords:
            return self._member(producer)[producer.results.index(root)]
        if producer is not None and is_free(producer) and root not in self.layout.places:
            return self._evaluate(producer, index)[producer.results.index(root)]
        place = self.layout.places.get(root)
        if place is None:
            raise LoweringError(f"{root} is needed in memory but was not placed")
        return self._load(root, place, index, inside)

    def _load(self, tensor: Tensor, place: Placement, index: Index, inside: int | None = None) -> int:
        """``tensor[index]``, or zero where the value ``inside`` is false."""
        operand = self._operand(tensor, place, "read")
        if self.group is not None and self.group.kind == "contract":
            zeros = vanishes(tensor)
            if zeros:
                self._zeros.add(operand)
            if self._share is None and (zeros or tensor.dtype == "i1"):
                self._share = share_of(tensor)
        zero = 0.0 if tensor.dtype[0] in "bf" else 0
        args = () if inside is None else (inside, self.add(Instr("constant", (), tensor.dtype, (("value", zero),))))
        return self.add(Instr("load", args, tensor.dtype, (("address", place.address(index)), ("operand", operand))))

    def _inside(self, views: Sequence[Op], index: Index) -> int | None:
        """Whether ``index`` lies in the source of all borders among ``views``; None where there is none."""
        found: int | None = None
        for view in reversed(views):
            for pair in bounds(view, index) if view.kind == "border" else ():
                args = tuple(self.add(Instr("index", (), "i64", (("expr", recombine(e)),))) for e in pair)
                within = self.add(Instr("arith.cmpi", args, "i1", (("predicate", "ult"),)))
                found = within if found is None else self.add(Instr("arith.andi", (found, within), "i1"))
            index = backward(view, index, self.ranges)
        return found

    def store(self, value: int, tensor: Tensor, place: Placement, index: Index) -> None:
        """Write a value to ``tensor[index]`` where it is placed."""
        operand = self._operand(tensor, place, "write")
        self.instrs.append(Instr("store", (value,), "", (("address", place.address(index)), ("operand", operand))))

    def update(
        self, value: int, mask: int | None, tensor: Tensor, place: Placement, index: Index, combine: str
    ) -> None:
        """Combine a value with what stands at ``tensor[index]``, where ``mask`` holds."""
        operand = self._operand(tensor, place, "readwrite")
        args = (value,) if mask is None else (value, mask)
        attributes = (("address", place.address(index)), ("combine", combine), ("operand", operand))
        self.instrs.append(Instr("store", args, "", attributes))

    def add(self, instr: Instr) -> int:
        """Append an instruction, or find the equal one that is there."""
        if instr not in self._known:
            self.instrs.append(instr)
            self._known[instr] = len(self.instrs) - 1
        return self._known[instr]

    def _member(self, op: Op) -> list[int]:
        if op not in self._members:
            assert self.group is not None
            coords = self.group.coords[op]
            if op.kind in CONTRACTIONS:
                self._members[op] = [self._contract(op, coords)]
            else:
                found = self._body(op, coords)
                self._members[op] = self._reduced(op, coords, found) if op.reduction_dims else found
        return self._members[op]

    def _reduced(self, op: Op, coords: Index, found: list[int]) -> list[int]:
        """The member's reductions of ``found``. Over dims of size 1 none runs: the kernel's own may be another member's."""
        runs = any(op.dims[i].constant != 1 for i in op.reduction_dims)
        if op.kind == "argreduce":
            along = self.add(Instr("index", (), "i64", (("expr", coords[op.reduction_dims[0]]),)))
            attributes = (("kind", f"arg{op.attributes['kind']}"),)
            return [self.add(Instr("reduce", (found[0], along), "i64", attributes)) if runs else along]
        out: list[int] = []
        for value, kind, result in zip(found, op.attributes["reduce"], op.results, strict=True):
            if runs:
                out.append(self.add(Instr("reduce", (value,), result.dtype, (("kind", kind),))))
            elif kind == "add" and result.dtype[0] in "bf":  # a sum starts from 0: that of -0 is +0
                zero = self.add(Instr("constant", (), result.dtype, (("value", 0.0),)))
                out.append(self.add(Instr("arith.addf", (value, zero), result.dtype)))
            else:
                out.append(value)
        return out

    def _evaluate(self, op: Op, index: Index) -> list[int]:
        """A free operation at a result index (its result maps are permutations of its dims)."""
        coords = [const(0)] * len(op.dims)
        for e, position in zip(op.result_maps[0], index, strict=True):
            coords[int(str(e)[1:])] = position
        return self._body(op, tuple(coords))

    def _contract(self, op: Op, coords: Index) -> int:
        assert op.body is not None
        product = op.body.instrs[op.body.yields[0]]
        if product.op not in ("arith.mulf", "arith.muli"):
            raise LoweringError(f"a contraction that does not sum products ({product.op}), at {op.location}")
        factors = self._body(op, coords, Body(op.body.instrs, product.args))
        numbers = [self._operand_number(op.body, position) for position in product.args]
        if numbers == [1, 0]:
            factors.reverse()
        return self.add(Instr("contract", tuple(factors), op.results[0].dtype))

    def _operand_number(self, body: Body, position: int) -> int:
        instr = body.instrs[position]
        while instr.op != "operand":
            instr = body.instrs[instr.args[0]]
        return int(instr.get("number"))

    def _body(self, op: Op, coords: Index, body: Body | None = None) -> list[int]:
        """Instantiate a scalar body at ``coords``; the positions of what it yields."""
        body = body or op.body
        assert body is not None
        at = {f"d{i}": e for i, e in enumerate(coords)}
        needed = body.needed()
        made: dict[int, int] = {}
        for position, instr in enumerate(body.instrs):
            if position not in needed:
                continue
            args = tuple(made[a] for a in instr.args)
            if instr.op == "operand":
                number = instr.get("number")
                index = tuple(e.substitute(at, self.ranges) for e in op.maps[number])
                made[position] = self.value(op.operands[number], index)
            elif instr.op == "extract":
                tensor = op.operands[op.attributes["captured"] + instr.get("number")]
                known = instr.get("indices")
                index = tuple(
                    e.substitute(at, self.ranges) if e is not None else self._clamped(a, size)
                    for e, a, size in zip(known, args, tensor.sizes, strict=True)
                )
                made[position] = self.value(tensor, index)
            elif instr.op == "index":
                expr = recombine(instr.get("expr").substitute(at, self.ranges))
                made[position] = self.add(Instr("index", (), "i64", (("expr", expr),)))
            elif instr.op == "accumulator":
                raise LoweringError(f"a body that reads its accumulator in an odd way, at {op.location}")
            else:
                made[position] = self.add(instr.as_instr(args))
                rounds = instr.op == "arith.truncf" and instr.dtype == "bf16"
                if rounds and op.attributes.get("rounds") is None and read_within(op, self._ops()):
                    self._implicit.add(made[position])
        return [made[y] for y in body.yields]

    def _ops(self) -> Container[Op]:
        return self.group.coords if self.group is not None else ()

    def _clamped(self, position: int, size: Expr) -> Expr:
        """A gather's index, forced into range: nothing is read out of bounds, whatever the data."""
        zero = self.add(Instr("constant", (), "i64", (("value", 0),)))
        last = self.add(Instr("index", (), "i64", (("expr", size - 1),)))
        low = self.add(Instr("arith.maxsi", (position, zero), "i64"))
        return var(f"v{self.add(Instr('arith.minsi', (low, last), 'i64'))}")

    # -- operands ---------------------------------------------------------------------------------------------------
    def _operand(self, tensor: Tensor, place: Placement, role: str) -> int:
        site = Site(place.base, place.offset, tensor.dtype)
        size = extent(tensor.sizes, place.strides)
        if site not in self.sites:
            self.sites.append(site)
            self.roles.append(role)
            self.sizes.append(size)
        number = self.sites.index(site)
        if self.roles[number] != role:
            self.roles[number] = "readwrite"
        if size.constant is None or (self.sizes[number].constant or 0) < size.constant:
            self.sizes[number] = size
        return number

    # -- the kernel -------------------------------------------------------------------------------------------------
    def finish(self, template: str, name: str, location: str, attributes: tuple[tuple[str, Any], ...] = ()) -> Kernel:
        """The kernel; its dims are renumbered (parallel first), dead instructions dropped, symbols normalised."""
        self.split_dims()
        parallel = self._parallel_order()
        order = [*parallel, *self._reduction_order()]
        rename: dict[str, Expr | int] = {f"d{old}": var(f"d{new}") for new, old in enumerate(order)}
        dims = tuple(Dim(self.dims[i], "reduction" if i in self.reduction else "parallel") for i in order)
        body = _renumbered(fold_roundings(self.instrs, self._implicit), rename)
        operands = tuple(
            Operand(s.dtype, r, size) for s, r, size in zip(self.sites, self.roles, self.sizes, strict=True)
        )
        single = tuple(o for o in sorted(self._zeros) if not _varies(body, o, len(parallel)))
        zeros: tuple[tuple[str, Any], ...] = ((ZEROS, single),) if single else ()
        columns = [d for d in dims if d.kind == "parallel" and d.size.constant != 1]
        leaves_out = bool(single) or chooses_zero(body)
        if self._share is not None and leaves_out and len(columns) <= 1:  # several rows have several shares
            zeros = (*zeros, (SHARE, self._share))
        spec = KernelSpec(template, dims, operands, body, (), (*attributes, *zeros))
        spec, symbols = normalised(spec)
        return Kernel(spec, tuple(self.sites), symbols, name, location)

    def split_dims(self) -> None:
        """Split a dim ``d`` that addresses use as ``d // c`` and ``d % c`` into two, where ``c`` divides its size: they become linear."""
        found = _divisions(self.instrs)
        while found:
            dim, divisor = found[0]
            size = self.dims[dim]
            outer = floordiv(size, divisor)
            if outer * divisor != size or size.constant == 1:
                found = found[1:]
                continue
            inner = len(self.dims)
            self.dims = (*self.dims[:dim], outer, *self.dims[dim + 1 :], divisor)
            if dim in self.reduction:
                self.reduction = self.reduction | {inner}
            self.ranges = {f"d{i}": s for i, s in enumerate(self.dims)}
            at: dict[str, Expr | int] = {f"d{dim}": var(f"d{dim}") * divisor + var(f"d{inner}")}
            self.instrs = [_substituted(instr, at, self.ranges) for instr in self.instrs]
            found = _divisions(self.instrs)

    def _parallel_order(self) -> list[int]:
        """Parallel dims by falling stride of the first store that has them all: the loop nest walks memory in order."""
        parallel = [i for i in range(len(self.dims)) if i not in self.reduction]
        for instr in self.instrs:
            if instr.op != "store":
                continue
            steps = [instr["address"].coefficient(f"d{i}") for i in parallel]
            if all(
                s is not None and s.terms for s, i in zip(steps, parallel, strict=True) if self.dims[i].constant != 1
            ):
                return _by_falling_stride(parallel, instr["address"])
        return parallel

    def _reduction_order(self) -> list[int]:
        """Reduction dims by falling stride of the first load that has them all (a contraction's left factor, a row's elements)."""
        summed = sorted(self.reduction)
        for instr in self.instrs:
            if instr.op == "load" and instr.dtype:
                steps = [instr["address"].coefficient(f"d{i}") for i in summed]
                if all(
                    s is not None and s.terms for s, i in zip(steps, summed, strict=True) if self.dims[i].constant != 1
                ):
                    return _by_falling_stride(summed, instr["address"])
        return summed


def _varies(body: Sequence[Instr], operand: int, parallel: int) -> bool:
    """Whether a load of ``operand`` depends on one of the first ``parallel`` dims."""
    names = {f"d{i}" for i in range(parallel)}
    return any(i.op == "load" and i["operand"] == operand and names & i["address"].variables() for i in body)


def _divisions(instrs: Sequence[Instr]) -> list[tuple[int, Expr]]:
    """(dim, divisor) of each ``d // c`` and ``d % c`` in the expressions of a body."""
    found: list[tuple[int, Expr]] = []

    def visit(e: Expr) -> None:
        for mono, _ in e.terms:
            for atom in mono:
                if isinstance(atom, Call):
                    name = str(atom.lhs)
                    if atom.fn in ("//", "%") and name[0] == "d" and name[1:].isdigit():
                        found.append((int(name[1:]), atom.rhs))
                    visit(atom.lhs)
                    visit(atom.rhs)

    for instr in instrs:
        for _, value in instr.attributes:
            if isinstance(value, Expr):
                visit(value)
    # the smallest constant divisor first: a dim that splits in three does so from the inside
    return sorted(dict.fromkeys(found), key=lambda f: (f[1].constant is None, f[1].constant or 0))


def _substituted(instr: Instr, values: dict[str, Expr | int], ranges: dict[str, Expr]) -> Instr:
    attributes = tuple(
        (k, recombine(v.substitute(values, ranges)) if isinstance(v, Expr) else v) for k, v in instr.attributes
    )
    return Instr(instr.op, instr.args, instr.dtype, attributes)


def _by_falling_stride(dims: Sequence[int], address: Expr) -> list[int]:
    """``dims`` by falling stride in ``address``."""
    strides = usual([address.coefficient(f"d{i}") for i in dims])
    rank = {i: -abs(stride or 0) for i, stride in zip(dims, strides, strict=True)}
    return sorted(dims, key=rank.__getitem__)


def _renumbered(instrs: Sequence[Instr], rename: dict[str, Expr | int]) -> tuple[Instr, ...]:
    """Drop what no store or check needs, renumber values, rename dims in addresses."""
    needed: set[int] = set()
    stack = [i for i, instr in enumerate(instrs) if instr.op in ("store", "check")]
    while stack:
        position = stack.pop()
        if position in needed:
            continue
        needed.add(position)
        stack.extend(instrs[position].args)
        for _, value in instrs[position].attributes:
            if isinstance(value, Expr):
                stack.extend(int(n[1:]) for n in value.variables() if n[0] == "v")
    fresh = {old: new for new, old in enumerate(sorted(needed))}
    names: dict[str, Expr | int] = {**rename, **{f"v{old}": var(f"v{new}") for old, new in fresh.items()}}
    return tuple(
        Instr(
            instrs[i].op,
            tuple(fresh[a] for a in instrs[i].args),
            instrs[i].dtype,
            tuple((k, v.substitute(names) if isinstance(v, Expr) else v) for k, v in instrs[i].attributes),
        )
        for i in sorted(needed)
    )


def normalised(spec: KernelSpec) -> tuple[KernelSpec, tuple[Expr, ...]]:
    """Rename the region's symbols to ``s0, s1, …`` in order of appearance, so that equal kernels are equal specs."""
    seen: dict[str, Expr | int] = {}

    def visit(e: Expr) -> None:
        for name in sorted(e.variables()):
            if name[0] not in "dv" and name not in seen:
                seen[name] = var(f"s{len(seen)}")

    for dim in spec.dims:
        visit(dim.size)
    for operand in spec.operands:
        visit(operand.size)
    for _, value in [a for instr in spec.body for a in instr.attributes] + list(spec.attributes):
        if isinstance(value, Expr):
            visit(value)
    if not seen:
        return spec, ()

    def fix(value: Any) -> Any:
        return value.substitute(seen) if isinstance(value, Expr) else value

    return (
        KernelSpec(
            spec.template,
            tuple(Dim(fix(d.size), d.kind) for d in spec.dims),
            tuple(replace(o, size=fix(o.size)) for o in spec.operands),
            tuple(Instr(i.op, i.args, i.dtype, tuple((k, fix(v)) for k, v in i.attributes)) for i in spec.body),
            tuple(f"s{i}" for i in range(len(seen))),
            tuple((k, fix(v)) for k, v in spec.attributes),
            spec.schedule,
        ),
        tuple(var(name) for name in seen),
    )
