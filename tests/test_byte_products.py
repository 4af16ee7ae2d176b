"""Products of two factors of bytes: in integers, with the numbers of eager's floats; and where they must stay in floats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantized_cases import RANGES, Q, Weight, fake, sums, torchao_sums
from torch import Tensor, nn
from torch.nn import functional as F

from effc.compiler.capture.recording import record


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(11)


class Linear(nn.Module):
    def __init__(self, n: int, k: int, scale: float, point: int, how: torch.dtype, **weight: Any) -> None:
        super().__init__()
        self.weight, self.bias = Weight(n, k, **weight), nn.Parameter(torch.randn(n))
        self.how = (scale, point, how)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(fake(x, *self.how), self.weight(), self.bias)


def exact(got: Tensor, model: Linear, x: Tensor) -> None:
    """``got`` is what the integers give, but for roundings of float32."""
    with torch.no_grad():
        expected = wide(model, x)
    assert (got.double() - expected).abs().max() <= 1e-6 * expected.abs().max()


def wide(model: Linear, x: Tensor) -> Tensor:
    """The layer from integers, in float64."""
    scale, point, dtype = model.how
    codes = Q.quantize_per_tensor(x, scale, point, *RANGES[dtype], dtype).to(torch.int64) - point
    weight, zeros = model.weight.codes.to(torch.int64), model.weight.zeros
    weight = weight if zeros is None else weight - zeros[:, None]
    expected: Tensor = (codes @ weight.T).double() * scale * model.weight.scales.double() + model.bias.double()
    return expected


@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize(("n", "k"), [(1, 7), (15, 64), (33, 130)])
@pytest.mark.parametrize(
    ("dtype", "point"), [(torch.int8, 0), (torch.int8, -128), (torch.int8, 127), (torch.uint8, 0), (torch.uint8, 255)]
)
def test_static_linear(dtype: torch.dtype, point: int, n: int, k: int, rows: int) -> None:
    model = Linear(n, k, 0.03, point, dtype)
    x = torch.randn(rows, k) * 4
    got, found = sums(model, x)
    assert found == ["i8xi8->i32"]
    exact(got, model, x)


@pytest.mark.parametrize(
    "weight", [{"zero": None}, {"zero": 3}, {"dtype": torch.uint8, "zero": 130}, {"dtype": torch.uint8, "zero": 255}]
)
@pytest.mark.parametrize("dtype", RANGES)
def test_zero_points_of_weights(dtype: torch.dtype, weight: dict[str, Any]) -> None:
    model = Linear(35, 70, 0.03, 5, dtype, **weight)
    x = torch.randn(9, 70) * 4
    got, found = sums(model, x)
    assert found == ["i8xi8->i32"]
    exact(got, model, x)


def test_a_zero_point_that_changes_is_noticed() -> None:
    model = Linear(8, 16, 0.03, 5, torch.uint8)
    compiled, x = torch.compile(model, backend="effc"), torch.randn(3, 16)
    with torch.no_grad():
        compiled(x)
        assert model.weight.zeros is not None
        model.weight.zeros[2] = 4
        with pytest.raises(IndexError, match=r"zeros was 0 when the model was compiled.*compile again"):
            compiled(x)
        torch._dynamo.reset()
        exact(torch.compile(model, backend="effc")(x), model, x)


def test_a_scale_that_changes_is_taken() -> None:
    model = Linear(8, 16, 0.03, 5, torch.uint8)
    compiled, x = torch.compile(model, backend="effc"), torch.randn(3, 16)
    with torch.no_grad():
        compiled(x)
        model.weight.scales.mul_(3)
        model.weight.codes[1] = 7
        exact(compiled(x), model, x)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_scale_for_each_token(symmetric: bool) -> None:
    weight = Weight(40, 48)

    def function(x: Tensor) -> Tensor:
        choose = Q.choose_qparams_per_token if symmetric else Q.choose_qparams_per_token_asymmetric
        scales, zeros = choose(x, torch.int8)
        t = Q.quantize_per_token(x, scales, zeros, -128, 127, torch.int8)
        result: Tensor = F.linear(
            Q.dequantize_per_token(t, scales, zeros, -128, 127, torch.int8, torch.float32), weight()
        )
        return result

    x = torch.randn(6, 7, 48) + 1
    got, found = sums(function, x)
    assert found == ["i8xi8->i32"]
    torch.testing.assert_close(got, function(x))


@pytest.mark.parametrize("point", [0, 17, 255])
@pytest.mark.parametrize(
    "case",
    [
        {"padding": 1}, {"padding": 2, "stride": 2}, {"padding": 2, "dilation": 2}, {"groups": 3, "padding": 1},
        {"groups": 12, "padding": 1}, {"kernel": 1}, {"kernel": 1, "stride": 2},
    ],
    ids=str,
)  # fmt: skip
def test_convolution(case: dict[str, int], point: int) -> None:
    """A border of zeros is one of zero points."""
    case = dict(case)
    kernel, groups = case.pop("kernel", 3), case.pop("groups", 1)
    weight, bias = Weight(24, 12 // groups, kernel, kernel), torch.randn(24)

    def function(x: Tensor) -> Tensor:
        y = F.conv2d(fake(x, 0.02, point, torch.uint8), weight(), bias, groups=groups, **case)
        return F.relu(y)

    x = torch.rand(2, 12, 11, 9) * 5 - 0.5
    got, found = sums(function, x)
    assert found == ["i8xi8->i32"]
    torch.testing.assert_close(got, function(x), rtol=1e-5, atol=1e-4)


def test_product_of_activations() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return fake(x, 0.03, 100, torch.uint8) @ fake(y, 0.02, 120, torch.uint8).transpose(-1, -2)

    x, y = torch.randn(2, 3, 17, 33), torch.randn(2, 3, 19, 33)
    got, found = sums(function, x, y)
    assert found == ["i8xi8->i32"]
    torch.testing.assert_close(got, function(x, y), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dtype", RANGES)
def test_max_pool_takes_codes(dtype: torch.dtype, padding: int) -> None:
    def function(x: Tensor) -> Tensor:
        return fake(F.max_pool2d(fake(x, 0.03, 3, dtype), 3, 2, padding), 0.03, 3, dtype)

    x = torch.randn(2, 5, 13, 11) * 3
    compiled = torch.compile(function, backend="effc")
    with record() as recording, torch.no_grad():
        got = compiled(x)
    reduced = [i.dtype for p, _ in recording.programs for k in p.kernels for i in k.body if i.op == "reduce"]
    assert reduced == ["i8"]
    assert torch.equal(got, function(x))


def test_a_residual_is_read_in_bytes() -> None:
    """Nothing between two layers is stored in more than a byte."""
    first, second = Weight(16, 16, 3, 3), Weight(16, 16, 3, 3)

    def function(x: Tensor) -> Tensor:
        x = fake(x, 0.05, 128, torch.uint8)
        y = fake(F.relu(F.conv2d(x, first(), padding=1)), 0.1, 0, torch.uint8)
        y = fake(F.relu(F.conv2d(y, second(), padding=1) + y), 0.2, 0, torch.uint8)
        return F.conv2d(y, first(), padding=1)

    x = torch.randn(1, 16, 8, 8)
    compiled = torch.compile(function, backend="effc")
    with record() as recording, torch.no_grad():
        got = compiled(x)
    (program, _), *_ = recording.programs
    stored = [
        program.kernels[c.kernel].operands[i["operand"]].dtype
        for c in program.calls
        for i in program.kernels[c.kernel].body
        if i.op == "store"
    ]
    assert set(stored[:-2]) == {"i8"}  # the result is stored in floats, and copied into planes
    steps = (got - function(x)).abs()
    assert (steps > 1e-3 * got.abs().max()).float().mean() < 1e-2  # where a rounding decides a tie


# -- where floats must stay -----------------------------------------------------------------------------------------
def test_a_scale_along_the_sum_stays() -> None:
    """Activations with a scale a channel, which the sum runs over."""
    scales, zeros, weight = torch.rand(20) * 0.1 + 1e-3, torch.zeros(20, dtype=torch.int64), Weight(9, 20)

    def function(x: Tensor) -> Tensor:
        q = Q.quantize_per_channel(x, scales, zeros, 1, -127, 127, torch.int8)
        return F.linear(Q.dequantize_per_channel(q, scales, zeros, 1, -127, 127, torch.int8), weight())

    x = torch.randn(5, 20)
    line = function.__code__.co_firstlineno + 2
    note = f"^test_byte_products.py:{line}: a product of two dequantized factors is summed in floats: a scale .*varies along"
    got, found = sums(function, x, notes=(note,))
    assert found == ["f32xi8->f32"]
    torch.testing.assert_close(got, function(x))


def test_a_sum_that_might_overflow_stays() -> None:
    model = Linear(2, 66_000, 0.03, 5, torch.uint8)
    x = torch.randn(1, 66_000)
    got, found = sums(model, x, notes=("a sum of 66000 products of bytes might exceed int32$",))
    assert found == ["f32xi8->f32"]
    torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-3)


def test_a_value_that_is_used_otherwise_is_right() -> None:
    """The dequantized input is also returned, and scaled once more on the way to the product."""
    weight = Weight(9, 20)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = fake(x, 0.04, 9, torch.uint8)
        return y, F.linear(y * 0.5, weight())

    x = torch.randn(5, 20)
    got, found = sums(function, x)
    assert found == ["i8xi8->i32"]
    for ours, eager in zip(got, function(x), strict=True):
        torch.testing.assert_close(ours, eager)


# -- bfloat16 ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_bfloat16_with_static_scales(rows: int) -> None:
    weight, bias = Weight(35, 70), torch.randn(35).bfloat16()
    how = (0.03, 5, *RANGES[torch.int8], torch.int8)

    def function(x: Tensor) -> Tensor:
        x = Q.dequantize_per_tensor(Q.quantize_per_tensor(x, *how), *how, out_dtype=torch.bfloat16)
        return F.linear(x, weight().bfloat16(), bias)

    x = (torch.randn(rows, 70) * 2).bfloat16()
    got, found = sums(function, x)
    assert found == ["i8xi8->i32"]
    codes = Q.quantize_per_tensor(x, *how).double() - 5
    expected = codes @ (weight.codes.double() * weight.scales.double()[:, None]).T * 0.03 + bias.double()
    assert (got.double() - expected).norm() <= 4e-3 * expected.norm()


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_bfloat16_of_torchao(rows: int) -> None:
    assert torchao_sums("Int8DynamicActivationInt8WeightConfig", rows) == ["i8xi8->i32"] * 2


# -- as eager has them ------------------------------------------------------------------------------------------------
class Integers(nn.Module):
    """Bytes by bytes of a weight in int32, as eager has it."""

    weight: Tensor

    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-128, 128, (n, k)).to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return torch._int_mm(x, self.weight.T)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 33, 7), (5, 17, 130), (40, 64, 256), (3, 1, 1)])
def test_products_in_int32_read_one_factor_as_unsigned(rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    model, (low, high) = Integers(n, k), RANGES[dtype]
    x = torch.randint(low, high + 1, (rows + 1, 2 * k)).to(dtype)[1:, 1 : k + 1]
    x[0] = low
    model.weight[0] = -128
    compiled = torch.compile(model, backend="effc", options={"fallback": "error"})
    with record() as recording, torch.no_grad():
        got = compiled(x)
    assert got.dtype == torch.int32
    assert torch.equal(got.long(), x.long() @ model.weight.long().T)
    specs = [spec for program, _ in recording.programs for spec in program.kernels]
    (spec,) = [s for s in specs if any(i.op == "contract" for i in s.body)]
    factors = [i.op for i in spec.body if i.op.startswith("arith.ext")]
    assert sorted(factors) == ["arith.extsi", "arith.extui"]


def test_products_of_two_inputs_in_int32() -> None:
    x, y = (torch.randint(-128, 128, shape).to(torch.int8) for shape in ((19, 65), (65, 31)))
    x[3], y[:, 4] = -128, -128
    got, found = sums(torch._int_mm, x, y)
    assert found == ["i8xi8->i32"]
    assert torch.equal(got.long(), x.long() @ y.long())
