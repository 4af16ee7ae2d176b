"""The factors of a contraction, read from a spec's body: a load, what makes its value a number of the sum, a zero point and a scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.contraction.borders import comparisons
from effc.compiler.ir.expr import Call, Expr, const, var
from effc.compiler.ir.formats import Format
from effc.compiler.ir.spec import Dim, Instr, KernelSpec

#: Ops that may stand between a load and ``contract``: conversions, exact or rounding, of one value.
CONVERSIONS = frozenset(
    f"arith.{name}" for name in ("extf", "truncf", "extsi", "extui", "sitofp", "uitofp", "fptosi", "fptoui", "trunci")
)


@dataclass(frozen=True)
class Grain:
    """A zero point or scale of a quantized factor: the instruction that applies it, its load, and the conversions that follow that."""

    instr: int
    load: int
    chain: tuple[int, ...]
    operand: int


@dataclass(frozen=True)
class Side:
    """One factor of the product: ``load`` is the instruction that reads it, ``chain`` the conversions that follow it, ``masks`` the
    comparisons that say where it is not zero (`borders`). ``zero`` is subtracted from the converted value, which ``scale`` multiplies;
    ``format``: of its codes, where the first conversion is ``decode``.
    """

    load: int
    chain: tuple[int, ...]
    operand: int
    packed: bool
    masks: tuple[int, ...] = ()
    zero: Grain | None = None
    scale: Grain | None = None
    format: Format | None = None

    @property
    def grains(self) -> tuple[Grain, ...]:
        return tuple(g for g in (self.zero, self.scale) if g is not None)

    @property
    def quantized(self) -> bool:
        """Whether it is more than a load and conversions."""
        return self.format is not None or bool(self.grains)

    @property
    def inside(self) -> frozenset[int]:
        """All instructions that make the factor."""
        own = {self.load, *self.chain}
        return frozenset(own.union(*({g.instr, g.load, *g.chain} for g in self.grains)))


def read_side(spec: KernelSpec, value: int) -> Side | str:
    """The factor that is ``value``, an instruction of the body, or the reason why it is none."""
    grains: list[Grain | None] = []
    for op in ("arith.mulf", "arith.subf"):
        instr = spec.body[value]
        if instr.op != op:
            grains.append(None)
            continue
        load, chain = _chain(spec.body, instr.args[1])
        if spec.body[load].op != "load" or spec.body[load].args or instr.dtype != "f32":
            return _unknown(op)
        grains.append(Grain(value, load, chain, spec.body[load]["operand"]))
        value = instr.args[0]
    scale, zero = grains
    load, chain = _chain(spec.body, value, frozenset({"decode"}))
    instr = spec.body[load]
    masks: tuple[int, ...] | None = ()
    if instr.op == "load" and instr.args:
        other = spec.body[instr.args[1]]
        masks = comparisons(spec, instr.args[0]) if other.op == "constant" and other["value"] == 0 else None
    if instr.op != "load" or masks is None:
        return _unknown("a masked load" if instr.op == "load" else instr.op)
    operand = instr["operand"]
    decodes = [i for i in chain if spec.body[i].op == "decode"]
    if decodes and (decodes != list(chain[:1]) or spec.operands[operand].dtype != "i8"):
        return "decode of something else than a load of i8"
    format_ = Format.of(spec.body[decodes[0]]) if decodes else None
    if (scale or zero) and spec.operands[operand].dtype != "i8":
        return _unknown("arith.mulf" if scale else "arith.subf")
    packed = spec.operands[operand].role == "packed"
    return Side(load, chain, operand, packed, masks, zero, scale, format_)


def _unknown(what: str) -> str:
    return f"a factor of contract comes from {what}; only a load, plain or with a border of zeros, is taken"


def _chain(body: Sequence[Instr], value: int, further: frozenset[str] = frozenset()) -> tuple[int, tuple[int, ...]]:
    """What a chain of conversions starts from, and the chain in its order."""
    chain: list[int] = []
    while body[value].op in CONVERSIONS | further:
        chain.append(value)
        value = body[value].args[0]
    return value, tuple(reversed(chain))


def split_groups(spec: KernelSpec) -> KernelSpec | str:
    """``spec`` with each reduction dimension ``k`` over which a scale's or zero point's address says ``k // G`` written as two, of the
    groups and of a group.
    """
    sides = [read_side(spec, arg) for instr in spec.body if instr.op == "contract" for arg in instr.args]
    addresses = [spec.body[g.load]["address"] for side in sides if isinstance(side, Side) for g in side.grains]
    for k, dim in enumerate(spec.dims):
        if dim.kind != "reduction":
            continue
        name = f"d{k}"
        found = {by for address in addresses for by in _divisors(address, name)}
        if not found:
            continue
        if len(found) > 1:
            return f"groups of different sizes along {name}"
        (by,) = found
        size = dim.size.constant
        if not by or size is None or size % by:
            return f"groups of {by} codes along {name}, a sum of {dim.size}"
        return split_groups(_split(spec, k, size // by, by))
    return spec


def _divisors(address: Expr, name: str) -> set[int]:
    """The numbers by which the variable alone is divided in an address."""
    calls = (atom for mono, _ in address.terms for atom in mono if isinstance(atom, Call))
    return {c.rhs.constant or 0 for c in calls if c.fn == "//" and c.lhs == var(name)}


def _split(spec: KernelSpec, k: int, groups: int, size: int) -> KernelSpec:
    first = {f"d{i}": var(f"t{i + (i > k)}") for i in range(len(spec.dims))}
    first[f"d{k}"] = var(f"t{k}") * size + var(f"t{k + 1}")
    ranges = {f"t{k + 1}": const(size)}
    second = {f"t{i}": var(f"d{i}") for i in range(len(spec.dims) + 1)}

    def rewrite(value: object) -> object:
        return value.substitute(first, ranges).substitute(second) if isinstance(value, Expr) else value

    body = tuple(Instr(i.op, i.args, i.dtype, tuple((n, rewrite(v)) for n, v in i.attributes)) for i in spec.body)
    parts = (Dim(const(groups), "reduction"), Dim(const(size), "reduction"))
    dims = (*spec.dims[:k], *parts, *spec.dims[k + 1 :])
    return KernelSpec(spec.template, dims, spec.operands, body, spec.symbols, spec.attributes, spec.schedule)


def unfit_grains(spec: KernelSpec, side: Side, shared: Sequence[int], reduction: Sequence[int]) -> str | None:
    """Why no kernel applies the grains of the packed ``side`` of a merged spec; None where one does. ``shared``: the parallel
    dimensions of its codes.
    """
    if not side.quantized:
        return None
    if any(spec.operands[g.operand].role != "packed" for g in side.grains):
        return "a scale or zero point of codes that is not constant"
    for grain in side.grains:
        address = spec.body[grain.load]["address"]
        dims = {int(v[1:]) for v in address.variables() if v[0] == "d"}
        inside = dims & set(reduction)
        if not dims <= {*shared, *reduction} or inside - {*reduction[:1]} or (inside and len(reduction) == 1):
            return "scales or zero points that are not of columns, or groups along the outermost sum"
        if any(address.coefficient(f"d{i}") is None for i in dims):
            return "an address of a scale or zero point is not linear"
    return None
