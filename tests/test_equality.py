"""The digest of what a kernel computes: equal computations share it, however they are written; others do not."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from effc.compiler.ir.equality import computation
from effc.compiler.ir.expr import Expr, as_expr, const, var
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand, Schedule


def spec_of(
    body: list[Instr],
    sizes: tuple[int | str, ...] = (6, 6),
    roles: tuple[str, ...] = ("read", "read", "write"),
    template: str = "loops",
    **fields: object,
) -> KernelSpec:
    dims = tuple(Dim(as_expr(size)) for size in sizes)
    operands = tuple(Operand("f32", role, const(36)) for role in roles)
    return replace(KernelSpec(template, dims, operands, tuple(body)), **fields)  # type: ignore[arg-type]


def load(operand: int, address: str = "6*d0 + d1", *args: int) -> Instr:
    return Instr("load", args, "f32", (("address", as_expr(address)), ("operand", operand)))


def store(value: int, operand: int = 2, address: str = "6*d0 + d1") -> Instr:
    return Instr("store", (value,), "", (("address", as_expr(address)), ("operand", operand)))


def op(name: str, *args: int, dtype: str = "f32", **attributes: object) -> Instr:
    return Instr(name, args, dtype, tuple(attributes.items()))


def product(m: int = 5, n: int = 7, k: int = 11) -> KernelSpec:
    """``relu(a b)``, where a dimension of size 1 stands between."""
    body = (
        load(0, f"{k}*d0 + d3"),
        load(1, f"d2 + {n}*d3"),
        op("contract", 0, 1),
        op("constant", value=0.0),
        op("arith.maximumf", 2, 3),
        store(4, 2, f"{n}*d0 + d2"),
    )
    dims = (Dim(const(m)), Dim(const(1)), Dim(const(n)), Dim(const(k), "reduction"))
    sizes = (m * k, k * n, m * n)
    operands = tuple(Operand("f32", r, const(s)) for r, s in zip(("read", "read", "write"), sizes, strict=True))
    return KernelSpec("contraction", dims, operands, body)


def rewritten(spec: KernelSpec, seed: int) -> KernelSpec:
    """The same, written otherwise: dimensions, operands, commutative arguments and independent instructions in another order, and an
    instruction that nothing uses.
    """
    draw = random.Random(seed)
    kinds = [d.kind for d in spec.dims]
    parallel = [i for i, kind in enumerate(kinds) if kind == "parallel"]
    reduced = [i for i, kind in enumerate(kinds) if kind != "parallel"]
    order = [*draw.sample(parallel, len(parallel)), *draw.sample(reduced, len(reduced))]
    places = draw.sample(range(len(spec.operands)), len(spec.operands))  # new place → old one
    names: dict[str, Expr | int] = {f"d{old}": var(f"d{new}") for new, old in enumerate(order)}
    body: list[Instr] = []
    moved: dict[int, int] = {}
    left = list(range(len(spec.body)))
    while left:
        ready = [i for i in left if all(a in moved for a in _needed(spec.body[i]))]
        chosen = draw.choice(ready)
        left.remove(chosen)
        instr = spec.body[chosen]
        args = [moved[a] for a in instr.args]
        if instr.op in ("contract", "arith.addf", "arith.mulf", "arith.maximumf"):
            draw.shuffle(args)
        attributes = []
        for key, value in instr.attributes:
            if key == "operand":
                value = places.index(value)
            attributes.append((key, value.substitute(names) if isinstance(value, Expr) else value))
        moved[chosen] = len(body)
        names[f"v{chosen}"] = var(f"v{len(body)}")
        body.append(Instr(instr.op, tuple(args), instr.dtype, tuple(attributes)))
        if draw.random() < 0.5:
            body.append(op("constant", value=draw.random()))
    operands = tuple(spec.operands[old] for old in places)
    return replace(
        spec,
        dims=tuple(spec.dims[old] for old in order),
        operands=operands,
        body=tuple(body),
        schedule=Schedule((("mr", draw.randrange(9)),)),
    )


def _needed(instr: Instr) -> list[int]:
    """Values that an instruction reads, also in an address."""
    read = {v for _, value in instr.attributes if isinstance(value, Expr) for v in value.variables() if v[0] == "v"}
    return [*instr.args, *(int(v[1:]) for v in read)]


SUM = spec_of([load(0), load(1), op("arith.addf", 0, 1), store(2)])
CASES: dict[str, KernelSpec] = {
    "sum": SUM,
    "product": product(),
    "square product": product(6, 6, 6),
    "turned": spec_of([load(0), load(1, "d0 + 6*d1"), op("arith.mulf", 0, 1), store(2)]),
    "three": spec_of(
        [load(0), load(1), load(2), op("arith.addf", 0, 1), op("arith.addf", 3, 2), store(4, 3)],
        roles=("read", "read", "read", "write"),
    ),
    "cube": spec_of(
        [load(0, "36*d0 + 6*d1 + d2"), op("math.exp", 0), store(1, 1, "36*d1 + 6*d2 + d0")],
        (6, 6, 6),
        ("read", "write"),
    ),
    "gather": spec_of([load(0), load(1, "v0 + d1"), store(1)]),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_otherwise_is_equal(name: str) -> None:
    assert {computation(rewritten(CASES[name], seed)) for seed in range(20)} == {computation(CASES[name])}


def test_different_computations_differ() -> None:
    assert len({computation(spec) for spec in CASES.values()}) == len(CASES)


CHANGES: dict[str, Callable[[KernelSpec], KernelSpec]] = {
    "a size": lambda s: replace(s, dims=(Dim(const(7)), *s.dims[1:])),
    "a kind": lambda s: replace(s, dims=(s.dims[0], Dim(s.dims[1].size, "reduction"))),
    "a dtype": lambda s: replace(s, operands=(replace(s.operands[0], dtype="bf16"), *s.operands[1:])),
    "a role": lambda s: replace(s, operands=(replace(s.operands[0], role="packed"), *s.operands[1:])),
    "a sparsity": lambda s: replace(s, operands=(replace(s.operands[0], sparsity=Sparsity(1, 1, 9)), *s.operands[1:])),
    "an operation": lambda s: replace(s, body=(*s.body[:2], op("arith.subf", 0, 1), s.body[3])),
    "an operand twice": lambda s: replace(s, body=(*s.body[:2], op("arith.addf", 0, 0), s.body[3])),
    "a stride": lambda s: replace(s, body=(load(0, "d0 + 6*d1"), *s.body[1:])),
    "an offset": lambda s: replace(s, body=(load(0, "6*d0 + d1 + 1"), *s.body[1:])),
    "an attribute": lambda s: replace(s, attributes=(("causal", 1),)),
    "a template": lambda s: replace(s, template="scan"),
    "a symbol": lambda s: replace(s, dims=(Dim(var("s0")), s.dims[1]), symbols=("s0",)),
    "a second store": lambda s: replace(s, body=(*s.body, store(0))),
}  # fmt: skip


def test_each_difference_tells() -> None:
    found = {name: computation(change(SUM)) for name, change in CHANGES.items()}
    assert len({computation(SUM), *found.values()}) == 1 + len(found)


def test_arguments_of_a_difference_may_not_be_exchanged() -> None:
    loads = [load(0), load(1, "d0")]
    one = spec_of([*loads, op("arith.subf", 0, 1), store(2)])
    other = spec_of([*loads, op("arith.subf", 1, 0), store(2)])
    assert computation(one) != computation(other)


def test_an_exchanged_comparison_is_equal() -> None:
    def chosen(predicate: str, *args: int) -> KernelSpec:
        compared = op("arith.cmpf", *args, dtype="i1", predicate=predicate)
        return spec_of([load(0), load(1), compared, op("arith.select", 2, 0, 1), store(3)])

    assert computation(chosen("olt", 0, 1)) == computation(chosen("ogt", 1, 0))
    assert computation(chosen("olt", 0, 1)) != computation(chosen("ole", 0, 1))
    assert computation(chosen("olt", 0, 1)) != computation(chosen("olt", 1, 0))


def test_the_order_of_stores_to_one_place_counts() -> None:
    one = spec_of([load(0), load(1, "d0"), store(0), store(1)])
    other = spec_of([load(0), load(1, "d0"), store(1), store(0)])
    assert computation(one) != computation(other)


def test_symbols_are_named_by_what_they_do() -> None:
    def dynamic(first: str, second: str) -> KernelSpec:
        address = as_expr(f"d1 + {second}*d0")
        body = (
            Instr("load", (), "f32", (("address", address), ("operand", 0))),
            op("math.exp", 0),
            Instr("store", (1,), "", (("address", address), ("operand", 1))),
        )
        size = as_expr(f"{first}*{second}")
        operands = (Operand("f32", "read", size), Operand("f32", "write", size))
        return KernelSpec("loops", (Dim(var(first)), Dim(var(second))), operands, body, ("s0", "s1"))

    assert computation(dynamic("s0", "s1")) == computation(dynamic("s1", "s0"))
    assert computation(dynamic("s0", "s1")) != computation(dynamic("s0", "s0"))


def test_the_layout_that_a_schedule_asks_for_does_not_count() -> None:
    packed = replace(SUM, operands=(replace(SUM.operands[0], role="packed"), *SUM.operands[1:]))
    larger = replace(packed, operands=(replace(packed.operands[0], size=const(48)), *packed.operands[1:]))
    scratch = replace(packed, operands=(*packed.operands, Operand("f32", "scratch", const(9))))
    assert computation(packed) == computation(larger) == computation(scratch)
    assert computation(packed) != computation(SUM)
