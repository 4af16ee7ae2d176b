"""What a kernel does, whatever its schedule: the mix of its operations, its iteration space, and how it walks through memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from effc.compiler.ir.spec import ITEM_SIZE, Instr, KernelSpec
from effc.costmodel import roofline
from effc.costmodel.features import strips
from effc.costmodel.features.code import written
from effc.costmodel.features.kinds import KINDS, kind_of
from effc.costmodel.features.moves import WALKS, Access, moved, steps, walk_of
from effc.costmodel.features.scale import NAN, share

TEMPLATES = ("loops", "contraction", "block", "attention", "scan", "scatter")

#: Cycles of one vector, where two multiply-adds start in each; a function is a polynomial of some length, or an instruction.
_CYCLES = {
    "add": 0.5,
    "multiply": 0.5,
    "compare": 0.5,
    "integer": 0.5,
    "convert": 1.0,
    "divide": 4.0,
    "reduce": 0.75,
    "decode": 1.0,
}
_OPS = {
    "arith.truncf": 3.0,
    "math.exp": 9.0,
    "math.exp2": 8.0,
    "math.erf": 11.0,
    "math.tanh": 14.0,
    "math.sqrt": 8.0,
    "math.rsqrt": 10.0,
}
_FUNCTION, _SEARCH = 20.0, 12.0
#: As the ``loops`` template counts vectors of instructions that are polynomials, and divisions.
_ASKED_HEAVY, _ASKED_DIVISION = 15.0, 8.0

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
    *(f"log_{kind}" for kind in KINDS),
    *("log_operations", "turned", "picked"),
    *(f"load_{walk}" for walk in WALKS),
    *(f"store_{walk}" for walk in WALKS),
    *("smallest_item", "largest_item", "computes_in_floats", "operands"),
)


@dataclass(frozen=True)
class Work:
    """``counts`` of each kind of instruction, ``operations`` as the roofline counts them, ``accessed``: elements that each operand's loads
    and stores touch, with repeats; ``walks``: of loads and of stores, elements by the way of walking. ``cycles``: of vectors of one
    element, without the factors of a product, as `_CYCLES` counts, ``functions``: those of polynomials among them; ``asked``: as the
    ``loops`` template counts them. ``order``: shares of what is moved that is transposed in registers, and picked up one by one. ``body``:
    machine instructions of a vector, without the factors of a product; ``strips``: `strips.facts`. ``values``: of the symbols.
    """

    spec: KernelSpec
    values: Mapping[str, int]
    sizes: tuple[int, ...]
    counts: Mapping[str, int]
    operations: int
    accessed: tuple[int, ...]
    walks: tuple[Mapping[str, int], Mapping[str, int]]
    cycles: float
    functions: float
    asked: float
    order: tuple[float, float]
    body: float
    strips: tuple[float, ...]

    @staticmethod
    def of(spec: KernelSpec, values: Mapping[str, int]) -> Work:
        sizes = tuple(d.size.evaluate(values) for d in spec.dims)
        operations = roofline.operations(spec, values) if not spec.body else 0
        counts: Counter[str] = Counter()
        walks = Counter[str](), Counter[str]()
        accessed = [0] * len(spec.operands)
        cycles = functions = asked = body = 0.0
        if spec.template == "attention":
            batch, heads, queries, keys, channels, out_channels = sizes
            points = batch * heads * queries * keys
            counts.update(contract=points * (channels + out_channels), math=points, add=2 * points)
        for stage in spec.stages:
            part = Work.of(stage, values)
            counts.update(part.counts)
            walks[0].update(part.walks[0])
            walks[1].update(part.walks[1])
            cycles, functions = cycles + part.cycles, functions + part.functions
            asked, body = asked + part.asked, body + part.body
            accessed = [a + b for a, b in zip(accessed, _padded(part.accessed, len(accessed)), strict=True)]
        product = any(i.op == "contract" for i in spec.body)
        outside = sum(d.kind == "parallel" for d in spec.dims) if product else len(sizes)
        points_of = [prod(sizes[:level]) for level in range(len(sizes) + 1)]
        accesses: list[Access] = []
        for instr, level in zip(spec.body, spec.levels(), strict=True):
            points = points_of[-1 if instr.op in ("reduce", "contract") else level]
            operations += roofline.cost(instr) * points
            kind = kind_of(instr)
            counts[kind] += points
            inside = level > outside or instr.op == "contract"
            body += 0.0 if inside else written(instr, kind)
            if instr.op in ("load", "store"):
                accessed[instr["operand"]] += points
                walked = steps(instr["address"], values)
                walk, along = walk_of(walked, spec)
                walks[instr.op == "store"][walk] += points
                if not inside:
                    masked = bool(instr.args[instr.op == "store" :])
                    item = ITEM_SIZE[spec.operands[instr["operand"]].dtype]
                    accesses.append(Access(instr.op == "store", masked, points, walk, along, dict(walked), item))
            elif not inside:
                each, heavy = _cost(instr, kind)
                cycles, asked = cycles + each * points, asked + heavy * points
                functions += each * points if kind == "math" else 0.0
        move, counted, order = moved(accesses, sizes)
        found = (
            tuple(accessed),
            walks,
            cycles + move,
            functions,
            asked + counted,
            order,
            body,
            strips.facts(spec, sizes, accesses),
        )
        return Work(spec, values, sizes, counts, operations, *found)

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
        walked = [(walks, sum(walks.values())) for walks in self.walks]
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
            *(float(self.counts.get(kind, 0)) for kind in KINDS),
            float(self.operations),
            *self.order,
            *(share(walks.get(w, 0), total) for walks, total in walked for w in WALKS),
            float(min(items, default=0)),
            float(max(items, default=0)),
            share(sum(dtype in _FLOATS for dtype in computed), len(computed)),
            float(len(dtypes)),
        ]


def _cost(instr: Instr, kind: str) -> tuple[float, float]:
    """Cycles of a vector of an instruction that computes, and as the template counts them."""
    if kind in ("constant", "index", "check"):
        return 0.0, 0.0
    if kind == "math":
        short = instr.op in ("math.sqrt", "math.rsqrt")
        return _OPS.get(instr.op, _FUNCTION), _ASKED_DIVISION if short else _ASKED_HEAVY
    if kind == "reduce" and instr["kind"].startswith("arg"):
        return _SEARCH, 0.5
    return _OPS.get(instr.op, _CYCLES.get(kind, 0.0)), _ASKED_DIVISION if kind == "divide" else 0.5


def _padded(counts: Sequence[int], length: int) -> list[int]:
    return [*counts[:length], *[0] * (length - len(counts))]
