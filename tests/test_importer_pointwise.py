"""Pointwise ops against eager through the evaluator: promotion, signs, special values, 16-bit rounding."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from importer_harness import compile_and_run
from torch import Tensor

SPECIAL = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.7, -3.7, 88.0, -104.0, math.inf, -math.inf, math.nan]
)
INTS = torch.tensor([0, 1, -1, 2, 7, -7, 127, -128])


def agrees(function: Callable[..., Tensor], *args: Tensor, dynamic: bool = False, tolerance: float = 2e-6) -> None:
    """The imported function equals eager: integers and 16-bit floats bit for bit, wider floats to a few ulp."""
    expected = function(*args)
    found, capture = compile_and_run(function, args, dynamic=dynamic)
    assert capture.refused == []
    assert capture.regions
    exact = not expected.is_floating_point()
    options = {"rtol": 0, "atol": 0} if exact else {"rtol": tolerance, "atol": tolerance / 10}
    torch.testing.assert_close(found, expected, equal_nan=True, **options)
    signs = expected.is_floating_point() and not expected.isnan().any()
    if signs:
        assert torch.equal(torch.signbit(found), torch.signbit(expected))


UNARY = [
    torch.abs, torch.neg, torch.sign, torch.floor, torch.ceil, torch.trunc, torch.round, torch.exp, torch.expm1, torch.sin,
    torch.cos, torch.tanh, torch.atan, torch.asinh, torch.sigmoid, torch.erf, torch.relu, torch.square, torch.reciprocal,
    torch.exp2, F.silu, F.hardswish, F.elu, F.mish, F.softplus, F.hardtanh, F.leaky_relu, F.relu6, F.logsigmoid,
    torch.isnan, torch.isinf, torch.isfinite, torch.logical_not, torch.signbit, torch.sinc, torch.log1p, torch.frac,
]  # fmt: skip


@pytest.mark.parametrize("function", UNARY, ids=lambda f: f.__name__)
def test_unary_on_special_values(function: Callable[..., Tensor]) -> None:
    agrees(lambda x: function(x), SPECIAL)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [torch.exp, torch.tanh, torch.sigmoid, torch.rsqrt, F.gelu, F.silu])
def test_unary_rounds_once_in_16_bits(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    agrees(lambda x: function(x), torch.rand(257).to(dtype) + 0.25, tolerance=0)


@pytest.mark.parametrize(
    "function", [operator.add, operator.mul, operator.sub, operator.truediv, torch.maximum, torch.fmod]
)
@pytest.mark.parametrize("left", [torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize("right", [torch.float32, torch.float16, torch.int64, torch.int8])
def test_binary_promotion(function: Callable[..., Tensor], left: torch.dtype, right: torch.dtype) -> None:
    if left == torch.bool and function is operator.sub:
        pytest.skip("torch has no subtraction of bool")
    whole = torch.arange(-6, 6).reshape(3, 4)
    x = (whole.abs() if left == torch.uint8 else whole).to(left)
    y = torch.tensor([1, 2, 3, 5]).to(right)
    agrees(lambda a, b: function(a, b), x, y)


def test_scalars_and_zero_dim_tensors_promote_weakly() -> None:
    x = torch.arange(5, dtype=torch.bfloat16)
    agrees(lambda a: a * 0.3 + 1, x)
    agrees(lambda a, b: a * b, x, torch.tensor(0.3, dtype=torch.float64))
    agrees(lambda a: a + 2.5, torch.arange(5))
    agrees(lambda a: torch.add(a, a, alpha=3), torch.arange(5))


@pytest.mark.parametrize("mode", [None, "floor", "trunc"])
def test_division_modes_on_floats(mode: str | None) -> None:
    x = torch.tensor([7.0, -7.0, 7.5, -7.5, 0.0, -0.0, 1.0, math.inf, math.nan, 5.0])
    y = torch.tensor([2.0, 2.0, -2.0, -2.5, 3.0, 3.0, 0.0, 2.0, 1.0, math.inf])
    agrees(lambda a, b: torch.div(a, b, rounding_mode=mode), x, y)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8])
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: torch.div(a, b, rounding_mode="floor"),
        lambda a, b: torch.div(a, b, rounding_mode="trunc"),
        torch.remainder,
        torch.fmod,
        torch.bitwise_and,
        torch.bitwise_xor,
        torch.eq,
        torch.lt,
        torch.ge,
        torch.minimum,
        torch.logical_xor,
        torch.true_divide,
    ],
)
def test_integer_division_and_bits_keep_signs(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    x = INTS.to(dtype)[:, None]
    y = torch.tensor([1, -1, 2, -2, 3, -5]).to(dtype)
    agrees(lambda a, b: function(a, b), x, y)


def test_integer_division_by_a_constant_needs_no_check() -> None:
    _, capture = compile_and_run(lambda x: x // 3 + x % 5, [torch.arange(-9, 9)])
    assert "effc.check" not in capture.regions[0].text


def test_integer_division_by_zero_is_reported() -> None:
    with pytest.raises(IndexError, match="ZeroDivisionError"):
        compile_and_run(lambda a, b: a // b, [torch.tensor([1, 2]), torch.tensor([1, 0])])


def test_unsigned_bytes() -> None:
    x = torch.tensor([0, 1, 127, 128, 200, 255], dtype=torch.uint8)
    for function in (lambda a: a // 3, lambda a: a % 7, lambda a: a > 127, lambda a: a.float(), lambda a: a + 200,
                     lambda a: a.amax(), lambda a: a >> 1, lambda a: ~a, lambda a: a.sum(), lambda a: -a):  # fmt: skip
        agrees(function, x)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 0.5, -0.5, -1, -2, 2.5, 5])
def test_powers_of_floats(exponent: float) -> None:
    agrees(lambda a: a**exponent, torch.tensor([0.0, 1.0, 2.0, 0.3, 7.5, math.inf, math.nan]))


def test_powers_of_integers() -> None:
    x = torch.tensor([0, 1, -1, 2, -3, 7])
    agrees(lambda a: a**5, x)
    agrees(lambda a, b: torch.pow(a, b), x[:, None], torch.tensor([0, 1, 2, 3, 10]))
    agrees(lambda a, b: torch.pow(a, b), torch.tensor([1, -1, 2]), torch.tensor([-3, -3, -1]))


def test_clamp_keeps_nan_and_takes_high_over_low() -> None:
    agrees(lambda a: a.clamp(-1, 2), SPECIAL)
    agrees(lambda a: a.clamp(2, -1), SPECIAL)
    agrees(lambda a: a.clamp(min=0.25), SPECIAL)
    agrees(lambda a, b: torch.clamp(a, max=b), SPECIAL, torch.full((15,), 0.5))
    agrees(lambda a: a.clamp(0, 5), INTS)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    agrees(lambda x: F.gelu(x, approximate=approximate), torch.linspace(-3, 5, 41), tolerance=2e-5)


def test_where_and_masked_fill() -> None:
    mask = torch.tensor([True, False, True])
    agrees(lambda m, a, b: torch.where(m, a, b), mask, torch.randn(2, 3), torch.randn(1))
    agrees(lambda m, a: torch.where(m, a, 2), mask, torch.arange(3))
    agrees(lambda m, a: a.masked_fill(m, -math.inf), mask, torch.randn(2, 3))
    agrees(lambda m, a: a.masked_fill(m, float("nan")), mask, torch.randn(3).bfloat16())


def test_rounding_half_to_even_and_decimals() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 1.25, 1.35, 123.456, -7.25])
    agrees(torch.round, x)
    agrees(lambda a: torch.round(a, decimals=1), x)
    agrees(lambda a: torch.round(a, decimals=-1), x)


@pytest.mark.parametrize(
    "target", [torch.float64, torch.float16, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.int64, torch.int16, torch.uint8, torch.bool])
def test_conversions(source: torch.dtype, target: torch.dtype) -> None:
    x = torch.tensor([0.0, 1.0, 1.5, 2.9, 100.0, 7.0]).to(source)
    agrees(lambda a: a.to(target), x)
    if source.is_signed and target != torch.uint8:
        agrees(lambda a: a.to(target), torch.tensor([-1.0, -2.7, -100.0]).to(source))


def test_functions_of_libm() -> None:
    agrees(torch.lgamma, torch.tensor([0.3, 1.0, 2.5, 10.0, -0.5]))
    agrees(torch.hypot, torch.randn(7), torch.randn(7))
    agrees(torch.atan2, torch.randn(7), torch.randn(7))
    agrees(torch.nextafter, torch.randn(7), torch.zeros(7))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (1, 5, 1), (7, 1)])
def test_odd_shapes_and_broadcasting(shape: tuple[int, ...]) -> None:
    agrees(
        lambda a, b: a * 2 + b, torch.randn(shape), torch.randn(3, 1, 5, 1)[0] if shape == (1, 5, 1) else torch.randn(1)
    )


def test_broadcasting_with_symbolic_sizes() -> None:
    agrees(lambda a, b: (a + b) * a.shape[0] + a.shape[1] / 3, torch.randn(5, 7), torch.randn(5, 1), dynamic=True)


def test_strided_inputs() -> None:
    x = torch.randn(6, 8)[::2, 1::3]
    agrees(lambda a, b: a.sin() + b, x, torch.randn(3, 3).t())
