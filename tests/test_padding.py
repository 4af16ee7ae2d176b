"""Padding of crowded rows: where it happens, where it must not, and that results stay exact through it."""

from __future__ import annotations

import pytest
import torch
from exactness import assert_exact
from torch import nn

from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.pipeline.graph import Op, Tensor
from effc.compiler.pipeline.padding import arranged, row_padding


def read_by_contraction(*sizes: int | Expr, dtype: str = "f32") -> Tensor:
    tensor = Tensor("t", dtype, tuple(const(s) if isinstance(s, int) else s for s in sizes))
    tensor.users.append(Op("contract", [tensor], []))
    return tensor


@pytest.mark.parametrize(
    ("sizes", "dtype", "padding"),
    [
        ((196, 1024), "f32", 16),
        ((196, 512), "f32", 16),
        ((196, 1024), "bf16", 32),
        ((196, 768), "f32", 0),
        ((196, 1025), "f32", 0),
        ((1, 1024), "f32", 0),  # one row crowds nothing
        ((196, 0), "f32", 0),
        ((var("s0"), 1024), "f32", 16),
    ],
)
def test_rows_that_crowd_a_set_are_padded(sizes: tuple[int | Expr, ...], dtype: str, padding: int) -> None:
    assert row_padding(read_by_contraction(*sizes, dtype=dtype), range(len(sizes)), False) == padding


def test_only_contractions_ask_for_it() -> None:
    tensor = Tensor("t", "f32", (const(196), const(1024)))
    tensor.users.append(Op("generic", [tensor], []))
    assert row_padding(tensor, (0, 1), multiplied=False) == 0
    assert row_padding(tensor, (0, 1), multiplied=True) == 16


@pytest.mark.parametrize(
    ("sizes", "groups", "padding"),
    [
        ((2, 98, 1024), ((0, 1), (2,)), 16),  # the rows become one dim
        ((2, 98, 1024), ((0,), (1, 2)), 0),  # a row becomes one with the rows before it
    ],
)
def test_rows_that_are_read_as_one_stay_dense(
    sizes: tuple[int, ...], groups: tuple[tuple[int, ...], ...], padding: int
) -> None:
    tensor = read_by_contraction(*sizes)
    merged = []
    for group in groups:
        size = const(1)
        for i in group:
            size = size * sizes[i]
        merged.append(size)
    result = Tensor("v", "f32", tuple(merged))
    view = Op("collapse", [tensor], [result], attributes={"groups": groups})
    result.producer = view
    tensor.users.append(view)
    assert row_padding(tensor, range(3), False) == padding


def test_a_buffer_holds_its_padding_and_its_strides_skip_it() -> None:
    strides, elements = arranged((const(1), const(1024), var("s0"), const(14)), (0, 2, 3, 1), 16)
    assert strides == (var("s0") * 14 * 1040, const(1), const(14 * 1040), const(1040))
    assert elements == var("s0") * 14 * 1040


class Blocks(nn.Module):
    """Rows of 1024: between linears, normalised, added, flattened, cut, and returned."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.again = nn.Linear(40, 1024), nn.Linear(1024, 40), nn.Linear(1024, 24)
        self.norm = nn.LayerNorm(1024)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.relu(self.up(x))
        z = self.norm(y + torch.roll(y, 1, 0))
        return self.down(z), z, self.again(y).flatten(1), self.up(x).flatten() * 2, self.again(z[1:, ::2])


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(8, 1024, 1), nn.Conv2d(1024, 8, 1, stride=2)
        self.same = nn.Conv2d(1024, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.relu(self.wide(x))
        return self.narrow(y), self.same(y), y.mean((2, 3)), self.narrow(torch.cat([y, y + 1], 2))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("module", "shapes"), [(Blocks, [(3, 5, 40), (2, 17, 40)]), (Convolutions, [(2, 8, 5, 7), (1, 8, 9, 3)])]
)
def test_models_with_crowded_rows_are_exact(
    module: type[nn.Module], shapes: list[tuple[int, ...]], dynamic: bool
) -> None:
    torch.manual_seed(0)
    model = module().eval()
    compiled = torch.compile(model, backend="effc", dynamic=dynamic)
    for shape in shapes:
        with torch.no_grad():
            assert_exact(model, (torch.randn(shape),), compiled, strides=True)
