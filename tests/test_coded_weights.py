"""Products of floats with a weight that alone is codes: it stays codes in memory, with the numbers of eager's floats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantized_cases import Q, Weight, sums, torchao_sums
from torch import Tensor, nn
from torch.nn import functional as F

from effc.compiler.ir.errors import InputError


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4, 35])
def test_weights_stay_codes(rows: int, dtype: torch.dtype) -> None:
    weight = Weight(70, 130, zero=None)

    def function(x: Tensor) -> Tensor:
        return F.linear(x, weight().to(dtype))

    x = torch.randn(rows, 130).to(dtype)
    got, found = sums(function, x)
    assert found == ["bf16xi8->f32" if dtype == torch.bfloat16 else "f32xi8->f32"]
    expected = x.double() @ (weight.codes.double() * weight.scales.double()[:, None]).T
    tolerance = 2e-6 if dtype == torch.float32 else 4e-3
    assert (got.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ("Int8WeightOnlyConfig", {}),
        ("IntxWeightOnlyConfig", {"weight_dtype": torch.int4}),  # type: ignore[attr-defined]
    ],
)
def test_bfloat16_of_torchao(config: str, arguments: dict[str, Any], rows: int) -> None:
    assert torchao_sums(config, rows, **arguments) == ["bf16xi8->f32"] * 2


# -- groups of codes ------------------------------------------------------------------------------------------------
class Grouped(nn.Module):
    """Codes with a scale, and perhaps a zero point, for each group along the sum."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, n: int, k: int, group: int, low: int, high: int, zero: str) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randint(low, high + 1, (n, k), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(n, k // group) * 0.1 + 1e-3)
        zeros = {
            "none": None,
            "zero": torch.zeros(n, k // group, dtype=torch.int8),
            "integers": torch.randint(low, high, (n, k // group)),
        }
        self.register_buffer("zeros", zeros[zero])
        self.how = (low, high, torch.int8, group, torch.float32)

    def weight(self) -> Tensor:
        result: Tensor = Q.dequantize_per_channel_group(self.codes, self.scales, self.zeros, *self.how)
        return result

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight())


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("zero", ["none", "zero", "integers"])
@pytest.mark.parametrize(("low", "high"), [(-8, 7), (0, 15), (-2, 1), (-128, 127)])
def test_groups(low: int, high: int, zero: str, rows: int) -> None:
    model, x = Grouped(70, 96, 32, low, high, zero), torch.randn(rows, 96)
    model.codes[0, :2] = torch.tensor([low, high], dtype=torch.int8)
    got, found = sums(model, x)
    assert found == ["f32xi8->f32"]
    expected = x.double() @ model.weight().double().T
    assert (got.double() - expected).norm() <= 1e-6 * expected.norm()


def test_codes_that_no_longer_fit_are_noticed() -> None:
    model = Grouped(16, 64, 32, -8, 7, "none")
    compiled, x = torch.compile(model, backend="effc"), torch.randn(2, 64)
    with torch.no_grad():
        compiled(x)
        model.codes[3, 4] = 9
        with pytest.raises(InputError, match=r"holds codes from -8 to 9.*compile again"):
            compiled(x)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(model, backend="effc")(x), model(x))


@pytest.mark.parametrize(("n", "k"), [(1, 64), (70, 64)])
def test_one_row_of_weights_has_no_panels(n: int, k: int) -> None:
    model, x = Grouped(n, k, 32, -8, 7, "none"), torch.randn(3, k)
    notes = ("a product of a dequantized weight reads it as floats: .*one column",)
    got, found = sums(model, x, notes=notes if n == 1 else ())
    assert found == (["f32xf32->f32"] if n == 1 else ["f32xi8->f32"])
    torch.testing.assert_close(got, model(x))
