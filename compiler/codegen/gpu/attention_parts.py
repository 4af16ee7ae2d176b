"""Attention over parts of the keys: what a part leaves in scratch memory, and the ``loops`` that join all.

A part of ``split`` leaves, of each row, its results not yet divided, the maximum of its scores (times log2 e), and the sum of its powers:
``[part][row][channel]``, ``[part][row]``, ``[part][row]``, in f32.
"""

from __future__ import annotations

from dataclasses import replace

from effc.compiler.codegen.gpu.attention import Plan
from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand, Schedule


def scratch_of(plan: Plan) -> Expr:
    """f32 elements of all parts."""
    return places(plan)[2] + plan.all_rows * plan.split


def places(plan: Plan) -> tuple[Expr, Expr, Expr]:
    """Where results, maxima and sums start."""
    results = plan.all_rows * plan.split * plan.spec.dims[5].size
    return const(0), results, results + plan.all_rows * plan.split


def joining(plan: Plan) -> KernelSpec:
    """``out = sum(w results) / sum(w sums)``, where ``w = 2^(maximum - largest maximum)``."""
    spec = plan.spec
    b, h, q, _, _, e = (d.size for d in spec.dims)
    d = [var(f"d{i}") for i in range(5)]
    rows, row = b * h * q, (d[0] * h + d[1]) * q + d[2]
    body: list[Instr] = []

    def add(op: str, *args: int, dtype: str = "f32", **attributes: object) -> int:
        body.append(Instr(op, args, dtype, tuple(sorted(attributes.items()))))
        return len(body) - 1

    def load(start: Expr, address: Expr) -> int:
        return add("load", operand=len(spec.operands), address=start + address)

    results, maxima, sums = places(plan)
    maximum = load(maxima, d[4] * rows + row)
    highest = add("reduce", maximum, kind="max")
    infinity, zero = add("constant", value="-inf"), add("constant", value=0.0)
    nothing = add("arith.cmpf", highest, infinity, dtype="i1", predicate="oeq")
    weight = add("math.exp2", add("arith.subf", maximum, add("arith.select", nothing, zero, highest)))
    total = add("reduce", add("arith.mulf", weight, load(sums, d[4] * rows + row)), kind="add")
    value = load(results, (d[4] * rows + row) * e + d[3])
    quotient = add("arith.divf", add("reduce", add("arith.mulf", weight, value), kind="add"), total)
    if not spec.get("nan", 0):
        quotient = add("arith.select", nothing, zero, quotient)
    dtype = spec.operands[3].dtype
    if dtype != "f32":
        quotient = add("arith.truncf", quotient, dtype=dtype)
    address = spec.get("out").substitute({"d5": d[3]})
    add("store", quotient, dtype="", operand=3, address=address)
    dims = (Dim(b), Dim(h), Dim(q), Dim(e), Dim(const(plan.split), "reduction"))
    operands = (*spec.operands, Operand("f32", "read", scratch_of(plan)))
    return replace(
        spec, template="loops", dims=dims, operands=operands, body=tuple(body), attributes=(), schedule=Schedule()
    )
