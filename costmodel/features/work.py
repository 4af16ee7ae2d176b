"""What a kernel does, whatever its schedule: the mix of its operations, its iteration space, and how it walks through memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from effc.compiler.ir.expr import Call, Expr
from effc.compiler.ir.spec import ITEM_SIZE, Instr, KernelSpec
from effc.costmodel import roofline
from effc.costmodel.features.scale import NAN, share

TEMPLATES = ("loops", "contraction", "block", "attention", "scan", "scatter")

#: Kinds of instructions that are counted, each at every point where it runs.
_KINDS = (
    "contract",
    "add",
    "multiply",
    "divide",
    "math",
    "compare",
    "integer",
    "convert",
    "reduce",
    "decode",
    "load",
    "store",
)

#: How an access moves: along which dimension its address takes steps of one element, or why along none.
_WALKS = ("inner", "reduction", "outer", "strided", "broadcast", "gathered")

_CHEAP_MATH = frozenset({"absf", "absi", "ceil", "floor", "copysign", "fma", "round", "roundeven", "trunc"})
_FLOATS = ("f64", "f32", "bf16", "f16")

COLUMNS: tuple[str, ...] = (
    *(f"is_{name}" for name in TEMPLATES),
    *(
        "parallel_dims",
        "reduction_dims",
        "log_parallel_points",
        "log_reduction_points",
        "log_innermost",
        "log_outermost",
    ),
    *("instructions", "symbolic"),
    *(f"log_{kind}" for kind in _KINDS),
    "log_operations",
    *(f"load_{walk}" for walk in _WALKS),
    *(f"store_{walk}" for walk in _WALKS),
    *("smallest_item", "largest_item", "computes_in_floats", "operands"),
)


@dataclass(frozen=True)
class Work:
    """``counts`` of each kind of instruction, ``operations`` as the roofline counts them, ``accessed``: elements that each operand's loads
    and stores touch, with repeats; ``walks``: of loads and of stores, elements by the way of walking. ``values``: of the symbols.
    """

    spec: KernelSpec
    values: Mapping[str, int]
    sizes: tuple[int, ...]
    counts: Mapping[str, int]
    operations: int
    accessed: tuple[int, ...]
    walks: tuple[Mapping[str, int], Mapping[str, int]]

    @staticmethod
    def of(spec: KernelSpec, values: Mapping[str, int]) -> Work:
        sizes = tuple(d.size.evaluate(values) for d in spec.dims)
        operations = roofline.operations(spec, values) if not spec.body else 0
        counts: Counter[str] = Counter()
        walks = Counter[str](), Counter[str]()
        accessed = [0] * len(spec.operands)
        if spec.template == "attention":
            batch, heads, queries, keys, channels, out_channels = sizes
            points = batch * heads * queries * keys
            counts.update(contract=points * (channels + out_channels), math=points, add=2 * points)
        for stage in spec.stages:
            part = Work.of(stage, values)
            counts.update(part.counts)
            walks[0].update(part.walks[0])
            walks[1].update(part.walks[1])
            accessed = [a + b for a, b in zip(accessed, _padded(part.accessed, len(accessed)), strict=True)]
        for instr, level in zip(spec.body, spec.levels(), strict=True):
            points = prod(sizes if instr.op in ("reduce", "contract") else sizes[:level])
            operations += roofline.cost(instr) * points
            counts[_kind(instr)] += points
            if instr.op in ("load", "store"):
                accessed[instr["operand"]] += points
                walks[instr.op == "store"][_walk(instr["address"], spec, values)] += points
        return Work(spec, values, sizes, counts, operations, tuple(accessed), walks)

    def bytes_of(self, spec: KernelSpec) -> tuple[tuple[str, int, float], ...]:
        """``(role, bytes, how often each is accessed)`` of each operand of ``spec``, this kernel under any schedule. Of what is gathered
        from, or has a border written, the bytes that are accessed.
        """
        found = []
        for number, operand in enumerate(spec.operands):
            count = self.accessed[number] if number < len(self.accessed) else 0
            size = operand.size.evaluate(self.values)
            touched = min(size, count) if spec.body and operand.role != "scratch" and operand.role != "packed" else size
            found.append((operand.role, touched * ITEM_SIZE[operand.dtype], share(count, touched)))
        return tuple(found)

    def row(self) -> list[float]:
        """In the order of `COLUMNS`, before `scale.scaled`."""
        spec = self.spec
        kinds = [d.kind for d in spec.dims]
        parallel = [size for size, kind in zip(self.sizes, kinds, strict=True) if kind == "parallel"]
        reduced = [size for size, kind in zip(self.sizes, kinds, strict=True) if kind != "parallel"]
        dtypes = [o.dtype for o in spec.operands if o.role != "scratch"]
        items = [ITEM_SIZE[dtype] for dtype in dtypes]
        computed = [i.dtype for stage in (spec, *spec.stages) for i in stage.body if i.dtype] or dtypes
        return [
            *(float(spec.template == name) for name in TEMPLATES),
            float(len(parallel)),
            float(len(reduced)),
            prod(parallel),
            prod(reduced) if reduced else 0.0,
            parallel[-1] if parallel else NAN,
            parallel[0] if parallel else NAN,
            float(len(spec.body) + sum(len(s.body) for s in spec.stages)),
            float(bool(spec.symbols)),
            *(float(self.counts.get(kind, 0)) for kind in _KINDS),
            float(self.operations),
            *(share(walks.get(w, 0), sum(walks.values())) for walks in self.walks for w in _WALKS),
            float(min(items, default=0)),
            float(max(items, default=0)),
            share(sum(dtype in _FLOATS for dtype in computed), len(computed)),
            float(len(dtypes)),
        ]


def _kind(instr: Instr) -> str:
    dialect, _, name = instr.op.partition(".")
    if not name:
        return instr.op
    if dialect == "libm" or (dialect == "math" and name not in _CHEAP_MATH):
        return "math"
    if name.startswith(("cmp", "select", "max", "min")):
        return "compare"
    if name.startswith(("ext", "trunc", "sitofp", "uitofp", "fpto", "bitcast", "index_cast")) and dialect == "arith":
        return "convert"
    if name.startswith(("div", "rem")) and name.endswith("f"):
        return "divide"
    if name == "mulf":
        return "multiply"
    return "add" if name.endswith("f") or dialect == "math" else "integer"


def _walk(address: Expr, spec: KernelSpec, values: Mapping[str, int]) -> str:
    """The first of `_WALKS` that fits an address."""
    moved: set[str] = set()
    gathered = False
    for name, step in steps(address, values):
        if name[0] == "v":
            gathered = True
        elif name[0] == "d" and step == 1:
            return _along(int(name[1:]), spec)
        elif name[0] == "d":
            moved.add(name)
    if gathered:
        return "gathered"
    return "strided" if moved else "broadcast"


def _along(dim: int, spec: KernelSpec) -> str:
    if spec.dims[dim].kind != "parallel":
        return "reduction"
    last = max(i for i, d in enumerate(spec.dims) if d.kind == "parallel")
    return "inner" if dim == last else "outer"


def steps(address: Expr, values: Mapping[str, int]) -> list[tuple[str, int]]:
    """``(variable, step)`` of the terms of an address over loop dimensions (``d*``) and values (``v*``); a step of 0 where it is not
    linear.
    """
    found: list[tuple[str, int]] = []
    for mono, coefficient in address.terms:
        step, names = coefficient, []
        for atom in mono:
            if isinstance(atom, Call):
                names += [(n, 0) for n in (*atom.lhs.variables(), *atom.rhs.variables()) if n not in values]
            elif atom.name in values:
                step *= values[atom.name]
            else:
                names.append((atom.name, 1))
        linear = len(names) == 1
        found += [(name, step if linear and single else 0) for name, single in names]
    return found


def _padded(counts: Sequence[int], length: int) -> list[int]:
    return [*counts[:length], *[0] * (length - len(counts))]
