"""How many bytes weights take, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from effc.compiler.compress.form import Form
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.pruning.pruned import PrunedWeight
from effc.compiler.compress.quantized import QuantizedWeight
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir.pattern import Pattern
from effc.compiler.ir.quantization import Scheme
from effc.planning.stored_size import model_size, planned_size, weights_size


def pruned(pattern: str) -> PrunedWeight:
    """8 x 16, of which half the elements are zeros, by groups of four or by columns of eight rows."""
    weight = torch.rand(8, 16) + 1
    weight[:, ::2] = 0
    return PrunedWeight.existing(weight, Pattern.parse(pattern))


CODES = torch.zeros(6, 9, dtype=torch.int8)
SCALES = torch.ones(6, 1)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (Factors(torch.ones(5, 2), torch.ones(2, 7), None), 4 * (10 + 14)),
        (Factors(torch.ones(5, 2).bfloat16(), torch.ones(2, 7).bfloat16(), torch.ones(5)), 2 * (10 + 14) + 4 * 5),
        (QuantizedWeight(Scheme("int8"), CODES, SCALES), 54 + 4 * 6),
        (QuantizedWeight(Scheme("int4", symmetric=False), CODES, SCALES, torch.zeros(6, 1, dtype=torch.int8)), 27 + 4 * 6 + 6),
        (QuantizedWeight(Scheme("int2"), CODES, SCALES), 14 + 4 * 6),
        (pruned("2:4"), 4 * 64 + 64 * 2 // 8),
        (pruned("8x1"), 4 * 64 + 8 * 4),
    ],
)  # fmt: skip
def test_bytes_of_a_form(form: Form, expected: int) -> None:
    assert weights_size({"w": StoredWeight(form, "")}) == expected


def test_what_is_shared_counts_once() -> None:
    model = nn.Sequential(nn.Linear(7, 5, bias=False), nn.Linear(7, 5, bias=False), nn.BatchNorm1d(5))
    model[1].weight = model[0].weight
    norm = 4 * (4 * 5) + 8  # scale, shift, mean, variance, and the count of batches
    assert model_size(model) == 4 * 35 + norm
    apart = nn.Sequential(nn.Linear(7, 5, bias=False), nn.Linear(7, 5, bias=False))
    right = torch.ones(2, 7)
    stored = {f"{i}.weight": StoredWeight(Factors(torch.ones(5, 2), right, None), "") for i in range(2)}
    assert planned_size(apart, stored) == 4 * (2 * 10 + 14)
    assert planned_size(apart, {"0.weight": stored["0.weight"]}) == 4 * (10 + 14 + 35)


def test_factors_in_bytes_count_as_bytes() -> None:
    stored: dict[str, StoredWeight[Form]] = {
        "w": StoredWeight(Factors(torch.ones(6, 9), torch.ones(9, 7), None), ""),
        "w:left": StoredWeight(QuantizedWeight(Scheme("int8"), CODES, SCALES), ""),
    }
    assert weights_size(stored) == 4 * 63 + 54 + 4 * 6
