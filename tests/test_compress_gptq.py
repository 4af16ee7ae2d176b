"""GPTQ against its definition, element by element in float64, and against plain rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from effc.compiler.compress.clipping import by_error, by_max
from effc.compiler.compress.compensation import Compensation
from effc.compiler.compress.gptq import compensated
from effc.compiler.compress.grid import Grid
from effc.compiler.compress.inputs import Inputs, by_channel, by_element
from effc.compiler.compress.nearest import nearest
from effc.compiler.compress.rounding import codes_of, values_of
from effc.compiler.ir.quantization import Scheme


def inputs_of(rows: Tensor) -> Inputs:
    return Inputs(rows.amin(0), rows.amax(0), rows.mean(0), rows[:64], rows.T @ rows / len(rows))


def correlated(rows: int, channels: int) -> Tensor:
    """Channels of different sizes that share most of what they say."""
    return torch.randn(rows, channels // 4) @ torch.randn(channels // 4, channels) + 0.3 * torch.randn(rows, channels)


def by_definition(weight: Tensor, grid: Grid, inputs: Inputs) -> Tensor:
    """Codes: after each element the best change of all that are left, by solving the least squares problem for it anew."""
    moment = inputs.moment.double()
    order = moment.diagonal().argsort(descending=True).tolist()
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(len(order))
    rest, codes = weight.double().clone(), torch.empty_like(weight)
    scales, zeros = grid.spread(weight.shape[1])
    for place, i in enumerate(order):
        zero = None if zeros is None else zeros[:, i]
        codes[:, i] = codes_of(grid.scheme, rest[:, i].float(), scales[:, i], zero)
        error = values_of(grid.scheme, codes[:, i], scales[:, i], zero).double() - rest[:, i]
        left = order[place + 1 :]
        if left:  # minimize (error e_i + d)ᵀ H (error e_i + d) over d in the elements left
            change = torch.linalg.solve(damped[left][:, left], damped[left, i])
            rest[:, left] -= error[:, None] * change
    return codes.to(torch.int8)


@pytest.mark.parametrize(
    "scheme", [Scheme("int4"), Scheme("int4", 8, symmetric=False), Scheme("nf4", 16), Scheme("int8")], ids=str
)
def test_codes_are_those_of_the_definition(scheme: Scheme) -> None:
    weight, inputs = torch.randn(7, 48), inputs_of(correlated(500, 48))
    grid = by_max(weight, scheme)
    found = compensated(weight, grid, Compensation.of(inputs))
    expected = by_definition(weight, grid, inputs)
    assert float((found.codes == expected).double().mean()) > 0.99  # a tie may fall to the other side in float32


@pytest.mark.parametrize("channels", [1, 3, 127, 128, 129, 200])
@pytest.mark.parametrize("scheme", [Scheme("int4"), Scheme("int2", symmetric=False), Scheme("nf4")], ids=str)
def test_less_error_than_nearest(channels: int, scheme: Scheme) -> None:
    weight = torch.randn(12, channels)
    inputs = inputs_of(correlated(900, channels) if channels > 4 else torch.randn(9, channels))
    grid = by_error(weight, scheme)
    plain = inputs.error(nearest(weight, grid).stored() - weight)
    found = compensated(weight, grid, Compensation.of(inputs))
    low, high = scheme.limits
    assert low <= int(found.codes.min()) <= int(found.codes.max()) <= high
    assert inputs.error(found.stored() - weight) <= (0.7 if channels > 4 else 1.2) * plain


def test_independent_inputs_leave_the_nearest() -> None:
    inputs = inputs_of(torch.eye(40) * torch.arange(1, 41))
    weight = torch.randn(5, 40)
    grid = by_max(weight, Scheme("int4", 8))
    assert torch.equal(compensated(weight, grid, Compensation.of(inputs)).codes, nearest(weight, grid).codes)


def test_dead_channels_are_rounded_to_the_nearest() -> None:
    rows = correlated(300, 32)
    rows[:, [0, 7, 31]] = 0
    inputs, weight = inputs_of(rows), torch.randn(6, 32)
    grid = by_max(weight, Scheme("int4"))
    found = compensated(weight, grid, Compensation.of(inputs))
    assert torch.equal(found.codes[:, [0, 7, 31]], nearest(weight, grid).codes[:, [0, 7, 31]])


@pytest.mark.parametrize(
    "rows", [torch.zeros(5, 16), torch.randn(1, 16), torch.full((4, 16), 1e-20), torch.randn(3, 16) * 1e12]
)
def test_inputs_that_say_little(rows: Tensor) -> None:
    """Fewer rows than channels, all equal, or nothing at all: codes are still finite and near."""
    weight = torch.randn(6, 16)
    grid = by_max(weight, Scheme("int8"))
    found = compensated(weight, grid, Compensation.of(inputs_of(rows)))
    assert bool(found.stored().isfinite().all())
    inputs = inputs_of(rows)
    plain = nearest(weight, grid).stored() - weight
    assert inputs.error(found.stored() - weight) <= 1.5 * inputs.error(plain) + 1e-30


def test_convolutions_are_linear_ones_of_more_rows() -> None:
    weight, inputs = torch.randn(6, 16 * 9), inputs_of(correlated(400, 16))
    rows = by_channel(weight, 16)
    assert torch.equal(rows.reshape(6, 9, 16), weight.reshape(6, 16, 9).transpose(1, 2))
    assert torch.equal(by_element(rows, 6), weight)
    grid = by_max(weight, Scheme("int4"))
    found = compensated(weight, grid, Compensation.of(inputs)).stored()
    wide = Grid(grid.scheme, grid.scales.repeat_interleave(9, 0))
    assert torch.equal(by_channel(found, 16), compensated(rows, wide, Compensation.of(inputs)).stored())
    assert inputs.error(found - weight) < 0.7 * inputs.error(nearest(weight, grid).stored() - weight)
