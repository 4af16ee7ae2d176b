"""Sums of integers that become floats: one multiply-add for scale and bias, and for what a quantization multiplies by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contraction_cases import Case
from kernels import HOST, Kernel

from effc.compiler.codegen.cpu.scaled import Scaled, find
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import const, var
from effc.compiler.ir.spec import Instr, KernelSpec, Operand

ROWS, COLUMNS, SUM = 5, 35, 40
TARGETS = {"host": HOST, "avx2": Target.named("avx2"), "x86-64": Target.named("x86-64")}


def spec(factor: float | None, exchanged: bool) -> KernelSpec:
    """Rows of unsigned times columns of signed bytes, scaled and with a bias a column; as bytes, times ``factor``, where it is given."""
    case = Case((ROWS, COLUMNS, SUM), 1, (SUM, 0, 1), (0, SUM, 1), (COLUMNS, 1), dtype="i8", result="i32", unsigned=0)
    plain = case.spec()
    body = [i for i in plain.body if i.op != "store"]
    at = len(body)

    def load(operand: int) -> Instr:
        return Instr("load", (), "f32", (("address", var("d1")), ("operand", operand)))

    def pair(x: int, y: int) -> tuple[int, int]:
        return (y, x) if exchanged else (x, y)

    body += [
        Instr("arith.sitofp", (at - 1,), "f32"),
        load(2),
        Instr("arith.mulf", pair(at, at + 1), "f32"),
        load(3),
        Instr("arith.addf", pair(at + 2, at + 3), "f32"),
    ]
    result, value = "f32", at + 4
    if factor is not None:
        result = "i8"
        body += [
            Instr("constant", (), "f32", (("value", factor),)),
            Instr("arith.mulf", (value, value + 1), "f32"),
            Instr("math.roundeven", (value + 2,), "f32"),
        ]
        value += 3
        for predicate, limit in (("ogt", -128.0), ("olt", 127.0)):
            body += [
                Instr("constant", (), "f32", (("value", limit),)),
                Instr("arith.cmpf", (value + 1, value), "i1", (("predicate", predicate),)),
                Instr("arith.select", (value + 2, value + 1, value), "f32"),
            ]
            value += 3
        body += [Instr("arith.fptosi", (value,), "i32"), Instr("arith.trunci", (value + 1,), "i8")]
        value += 2
    store = (("address", var("d0") * COLUMNS + var("d1")), ("operand", 4))
    body.append(Instr("store", (value,), "", store))
    operands = (*plain.operands[:2], *[Operand("f32", "read", const(COLUMNS))] * 2, Operand(result, "write", const(1)))
    return replace(plain, operands=operands, body=tuple(body))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("factor", [None, 37.5])
def test_as_the_operations_one_by_one(factor: float | None, exchanged: bool, name: str) -> None:
    torch.manual_seed(5)
    x, w = (
        torch.randint(0, 256, (ROWS, SUM), dtype=torch.uint8),
        torch.randint(-128, 128, (COLUMNS, SUM), dtype=torch.int8),
    )
    scale, bias = torch.rand(COLUMNS) * 1e-4 + 1e-5, torch.randn(COLUMNS)
    kernel = Kernel(spec(factor, exchanged), TARGETS[name])
    assert ("math.fma" in kernel.text) == TARGETS[name].has("fma")
    out = torch.empty(ROWS, COLUMNS, dtype=torch.float32 if factor is None else torch.int8)
    assert kernel([x.view(torch.int8), w, scale, bias, out], threads=2) == 0
    exact = (x.long() @ w.long().T).double() * scale.double() + bias.double()
    if factor is None:
        size = (exact - bias.double()).abs() + bias.double().abs()
        assert ((out.double() - exact).abs() <= 2.0**-23 * size).all()
        return
    wanted = exact * factor
    near = (wanted - wanted.floor() - 0.5).abs() < 1e-4  # where a rounding of a float decides
    assert ((out.double() == wanted.round().clamp(-128, 127)) | near).all()
    assert near.float().mean() < 0.05


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    ("factor", "scale", "bias"),
    [
        (1e30, 1e12, 1e-29),  # scale times factor is infinite, as is all but a sum of 0
        (torch.inf, 1e-3, -1.0),
        (1e15, 1e20, 1e-14),
        (1e-10, 1e-32, 5e10),  # scale times factor is 0
        (10.0, torch.inf, 1.0),
        (10.0, 1e-3, torch.inf),
        (10.0, 1e-3, torch.nan),
    ],
)
def test_extremes_saturate_as_the_operations_one_by_one(factor: float, scale: float, bias: float, name: str) -> None:
    torch.manual_seed(6)
    x, w = (
        torch.randint(0, 256, (ROWS, SUM), dtype=torch.uint8),
        torch.randint(-128, 128, (COLUMNS, SUM), dtype=torch.int8),
    )
    x[0], w[3] = 0, 0
    kernel = Kernel(spec(factor, False), TARGETS[name])
    out = torch.empty(ROWS, COLUMNS, dtype=torch.int8)
    assert kernel([x.view(torch.int8), w, torch.full((COLUMNS,), scale), torch.full((COLUMNS,), bias), out]) == 0
    wanted = ((x.long() @ w.long().T).float() * scale + bias) * factor
    assert torch.equal(out, wanted.round().nan_to_num(0, 127, -128).clamp(-128, 127).to(torch.int8))


def test_what_is_no_sum_of_integers_keeps_its_roundings() -> None:
    """Codes of a tensor, floats, and integers that a sum has no part in are computed as the model says."""
    load = Instr("load", (), "i32", (("address", var("d0")), ("operand", 0)))
    scale = Instr("load", (), "f32", (("address", var("d0")), ("operand", 1)))
    for first in ([load, Instr("arith.sitofp", (0,), "f32")], [scale, Instr("math.absf", (0,), "f32")]):
        body = [*first, scale, Instr("arith.mulf", (1, 2), "f32"), Instr("arith.addf", (3, 2), "f32")]
        assert find(body, 4) is None
    summed = [
        load,
        load,
        Instr("contract", (0, 1), "i32"),
        Instr("arith.subi", (2, 0), "i32"),
        Instr("arith.sitofp", (3,), "f32"),
    ]
    summed += [scale, Instr("arith.mulf", (4, 5), "f32"), Instr("arith.addf", (6, 5), "f32")]
    assert find(summed, 7) == Scaled(4, 5, 5)
    assert find(summed, 6) is None
    for widened, expected in ((True, Scaled(2, 3, 3)), (False, None)):
        factor = Instr("arith.extf", (0,), "f32") if widened else scale
        body = [load, factor, Instr("contract", (1, 1), "f32"), scale, Instr("arith.mulf", (2, 3), "f32")]
        assert find([*body, Instr("arith.addf", (4, 3), "f32")], 5) == expected
