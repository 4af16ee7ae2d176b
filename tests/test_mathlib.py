"""The vector math library against float64, on samples of all floats, with every special value, for every kind of target."""

from __future__ import annotations

import math

import math_sweep as sweep
import pytest
import torch

from effc.compiler.codegen.cpu.mathlib import function_for

TARGETS = ["host", "avx2", "x86-64"]
#: Most ulp in f32; docs/math.md gives what a dense sweep measures.
BOUND = {"tan": 1.6, "erf": 2.2, "sin": 1.6, "cos": 1.6, "tanh": 1.5, "log1p": 1.6, "rsqrt": 1.5}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", [o for o in sweep.REFERENCE if o not in sweep.BINARY])
def test_error_over_all_floats(op: str, target: str) -> None:
    x = sweep.floats(100_003)
    got = sweep.vector_function(op, "f32", target)(x)
    error = sweep.ulp_error(got, sweep.REFERENCE[op](x.double()))
    worst = int(error.argmax())
    assert error[worst] <= BOUND.get(op, 1.2), f"{op}({x[worst]!r}) = {got[worst]!r}"


@pytest.mark.parametrize("op", ["exp", "log", "sin", "cos", "tan", "tanh", "erf", "log1p", "expm1"])
def test_error_where_results_are_of_normal_size(op: str) -> None:
    x = torch.empty(1 << 18).uniform_(-20, 20)
    x = x.abs() if op in ("log", "log1p") else x
    error = sweep.ulp_error(sweep.vector_function(op)(x), sweep.REFERENCE[op](x.double()))
    assert error.max() <= BOUND.get(op, 1.2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", sweep.BINARY)
def test_two_arguments(op: str, target: str) -> None:
    x, y = sweep.pairs(50_000)
    got = sweep.vector_function(op, "f32", target)(x, y)
    error = sweep.ulp_error(got, sweep.REFERENCE[op](x.double(), y.double()))
    worst = int(error.argmax())
    assert error[worst] <= 0.6, f"{op}({x[worst]!r}, {y[worst]!r}) = {got[worst]!r}"


@pytest.mark.parametrize("lanes", [1, 4, 8, 32])
@pytest.mark.parametrize("op", ["exp", "sin", "atan"])
def test_other_vector_widths_give_the_same(op: str, lanes: int) -> None:
    x = torch.cat([torch.randn(992) * 10, torch.full((32,), 1e6)])
    assert torch.equal(sweep.vector_function(op, lanes=lanes)(x), sweep.vector_function(op)(x))


@pytest.mark.parametrize("lanes", [32, 128])
@pytest.mark.parametrize("op", ["erf", "tanh"])
def test_joined_registers_give_the_same(op: str, lanes: int) -> None:
    x = torch.cat([torch.tensor([*sweep.SPECIAL[:32]]), torch.randn(992) * 3])
    got, one = (sweep.vector_function(op, lanes=n)(x) for n in (lanes, 16))
    assert torch.equal(got.nan_to_num(7), one.nan_to_num(7))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("op", "limit"), [("erf", 3.93), ("tanh", 9.02)])
def test_saturates_at_one_and_never_passes_it(op: str, limit: float, target: str) -> None:
    x = torch.cat([torch.linspace(limit, 2 * limit, 1600), torch.tensor([1e30, torch.inf] * 8)])
    f = sweep.vector_function(op, "f32", target)
    assert (f(x) == 1).all()
    assert (f(-x) == -1).all()
    assert f(torch.linspace(0, limit, 16000)).max() <= 1


def test_exp_returns_subnormals() -> None:
    x = torch.linspace(-103.9, -87.4, 1600)
    y = sweep.vector_function("exp")(x)
    assert (y > 0).all()
    assert (y < 2.0**-126).all()


@pytest.mark.parametrize("op", ["sin", "cos", "tan"])
def test_huge_arguments_are_reduced_exactly(op: str) -> None:
    x = torch.exp(torch.empty(4096).uniform_(math.log(5e4), math.log(3e38)))
    error = sweep.ulp_error(sweep.vector_function(op)(x), sweep.REFERENCE[op](x.double()))
    assert error.max() <= BOUND[op]


F64 = [o for o in sweep.REFERENCE if o not in (*sweep.BINARY, "round", "rsqrt", "cbrt")]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", F64)
def test_f64_is_as_exact_as_eager(op: str, target: str) -> None:
    x = torch.cat([torch.tensor(sweep.SPECIAL).double(), torch.randn(2000, dtype=torch.float64) * 8])
    x = x[: len(x) // 8 * 8].contiguous()
    got, eager = sweep.vector_function(op, "f64", target, 8)(x), sweep.REFERENCE[op](x)
    torch.testing.assert_close(got, eager, rtol=2e-15, atol=0, equal_nan=True)
    zero = eager == 0
    assert torch.equal(got[zero].signbit(), eager[zero].signbit())


@pytest.mark.parametrize(
    "op", ["exp", "expm1", "log", "log1p", "tanh", "erf", "sin", "cos", "sinh", "cosh", "asinh", "tan", "atan"]
)
def test_f64_against_mpmath(op: str) -> None:
    x = torch.randn(400, dtype=torch.float64) * 3
    assert sweep.f64_error(op, x.abs() if op.startswith("log") else x) <= 2.5


@pytest.mark.parametrize("op", ["asin", "acos", "atanh", "log2", "log10", "exp2"])
def test_f64_where_the_argument_is_bounded(op: str) -> None:
    x = torch.rand(1 << 14, dtype=torch.float64) * 2 - 1
    x = x.abs() * 10 if op.startswith("log") else x
    torch.testing.assert_close(sweep.vector_function(op, "f64", lanes=8)(x), getattr(torch, op)(x), rtol=5e-16, atol=0)


def test_f64_hyperbolic_functions_overflow_where_the_result_does() -> None:
    x = torch.linspace(709.0, 711.0, 4096, dtype=torch.float64)
    for op in ("sinh", "cosh"):  # eager overflows too early
        exact = torch.tensor(
            [math.inf if v > 710.4758600739439 else getattr(math, op)(v) for v in x.tolist()], dtype=x.dtype
        )
        got = sweep.vector_function(op, "f64", lanes=8)(x)
        torch.testing.assert_close(got, exact, rtol=1e-15, atol=0)


def test_f64_angles_of_all_quadrants() -> None:
    x, y = (torch.cat([torch.randn(4096, dtype=torch.float64), p.double()]) for p in sweep.pairs(0))
    keep = len(x) // 8 * 8
    x, y = x[:keep].contiguous(), y[:keep].contiguous()
    got, eager = sweep.vector_function("atan2", "f64", lanes=8)(y, x), torch.atan2(y, x)
    torch.testing.assert_close(got, eager, rtol=1e-15, atol=0, equal_nan=True)
    assert torch.equal(got.signbit() & ~got.isnan(), eager.signbit() & ~eager.isnan())


@pytest.mark.parametrize("dtype", ["i8", "i32", "i64"])
def test_integer_powers_wrap_as_eager(dtype: str) -> None:
    kind = {"i8": torch.int8, "i32": torch.int32, "i64": torch.int64}[dtype]
    base = torch.arange(-16, 16).to(kind).repeat(16)
    exponent = torch.arange(-3, 13).to(kind).repeat_interleave(32)
    got = sweep.vector_function("ipowi", dtype)(base, exponent)
    assert torch.equal(got, torch.pow(base, exponent))


def test_powers_with_an_integer_exponent() -> None:
    x, n = torch.randn(1600) * 3, torch.arange(-50, 50, dtype=torch.int32).repeat(16)
    error = sweep.ulp_error(sweep.vector_function("fpowi")(x, n), torch.pow(x.double(), n.double()))
    assert error.max() <= 0.6


def test_ops_with_instructions_of_their_own_have_no_function() -> None:
    for op in ("sqrt", "absf", "floor", "ceil", "trunc", "roundeven", "copysign", "fma"):
        assert function_for(f"math.{op}", "f32", 16) is None
    assert function_for("math.exp", "bf16", 16) is None
