"""Rounding to bytes in fewer instructions: the same bytes as the operations that a model's graph has."""

from __future__ import annotations

import pytest
import torch
from kernels import HOST, Kernel, LoopsBuilder

from effc.compiler.codegen.cpu import saturation
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import KernelSpec

TARGETS = {"host": HOST, "avx2": Target.named("avx2"), "x86-64": Target.named("x86-64")}
VALUES = torch.cat(
    [
        torch.arange(-300, 300, 0.25),
        torch.randn(1000) * 100,
        torch.tensor([0.0, -0.0, 1e-45, -1e-45, 2.0**31, -(2.0**31), 2.0**31 - 128, 3e38, -3e38]),
        torch.tensor([float("inf"), float("-inf"), float("nan")]),
    ]
)


def quantization(
    low: float, high: float, zero: float | None, factor: float | None, within: tuple[float, float] | None
) -> KernelSpec:
    """Bytes of a vector of floats: clamped ``within``, times ``factor``, rounded, plus ``zero``, clamped from ``low`` to ``high``."""
    k = LoopsBuilder([(len(VALUES), "parallel")], [("f32", "read", len(VALUES)), ("i8", "write", len(VALUES))])

    def clamped(value: int, low: float, high: float) -> int:
        for predicate, limit in (("ogt", low), ("olt", high)):
            constant = k.constant(limit)
            condition = k.op("arith.cmpf", constant, value, dtype="i1", predicate=predicate)
            value = k.op("arith.select", condition, constant, value)
        return value

    value = k.load(0, "d0")
    if within is not None:
        value = clamped(value, *within)
    if factor is not None:
        value = k.op("arith.mulf", value, k.constant(factor))
    value = k.op("math.roundeven", value)
    if zero is not None:
        value = k.op("arith.addf", value, k.constant(zero))
    value = k.op("arith.fptosi", clamped(value, low, high), dtype="i32")
    k.store(1, "d0", k.op("arith.trunci", value, dtype="i8"))
    return k.spec()


def expected(
    low: float, high: float, zero: float | None, factor: float | None, within: tuple[float, float] | None
) -> torch.Tensor:
    value = VALUES if within is None else VALUES.clamp(*within)
    value = (value if factor is None else value * torch.tensor(factor, dtype=torch.float32)).round()
    return (value + (zero or 0.0)).clamp(low, high).to(torch.int32).to(torch.int8)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    ("low", "high", "zeros"),
    [(0.0, 255.0, (None, 0.0, 3.0, 255.0)), (-128.0, 127.0, (None, -128.0, -5.0, 127.0)), (-127.0, 127.0, (None,))],
)
@pytest.mark.parametrize("factor", [None, 0.37, 42.5, 3e38])
@pytest.mark.parametrize("within", [None, (0.0, 6.0), (-1.0, 1.0), (-1e9, 1e9)])
def test_bytes_are_those_of_the_graph(
    low: float, high: float, zeros: tuple[float | None, ...], factor: float | None, within: tuple[float, float] | None,
    name: str,
) -> None:  # fmt: skip
    for zero in zeros:
        spec = quantization(low, high, zero, factor, within)
        out = torch.full((len(VALUES),), 77, dtype=torch.int8)
        kernel = Kernel(spec, TARGETS[name])
        assert "cvt" in kernel.text
        assert kernel([VALUES, out]) == 0
        assert torch.equal(out, expected(low, high, zero, factor, within)), (zero, factor, within)


@pytest.mark.parametrize(
    ("factor", "zero", "left"),
    [(42.5, 0.0, 0), (42.499996, 0.0, 1), (42.5, 1.0, 1), (100.0, 0.0, 0), (None, 0.0, 1)],
)
def test_a_clamp_is_left_out_where_the_bytes_are_narrower(factor: float | None, zero: float, left: int) -> None:
    """ReLU6: its upper limit reaches 255, its lower one 0, or not."""
    spec = quantization(0.0, 255.0, zero, factor, (0.0, 6.0))
    at = next(i for i, instr in enumerate(spec.body) if instr.op == "arith.trunci")
    found = saturation.find(spec.body, at)
    assert found is not None
    is_clamp = spec.body[found.value].op == "arith.select"
    assert is_clamp == bool(left)


def test_what_is_no_rounding_to_bytes_is_left_alone() -> None:
    for low, high, zero in ((0.5, 255.0, None), (0.0, 300.0, None), (0.0, 255.0, 0.5)):
        spec = quantization(low, high, zero, 2.0, None)
        at = next(i for i, instr in enumerate(spec.body) if instr.op == "arith.trunci")
        assert saturation.find(spec.body, at) is None
