"""Contractions of one activation become one: where they must, where they must not, and with the numbers of the separate ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import assert_exact
from torch import Tensor, nn
from torch.nn import functional as F

import effc
from effc.compiler.capture.recording import record
from effc.compiler.ir.program import Program


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(3)


def compiled(model: Any, *inputs: Any, **options: Any) -> tuple[Any, Any, Program]:
    """The compiled model, its result, and its program."""
    fast: Any = torch.compile(model, backend="effc", options={"fallback": "error"}, **options)
    with record() as recording, torch.no_grad():
        result = fast(*inputs)
    ((program, _),) = recording.programs
    return fast, result, program


def contractions(program: Program) -> int:
    """Those of chains one by one."""
    kernels = [program.kernels[call.kernel] for call in program.calls]
    return sum(len(k.stages) or k.template == "contraction" for k in kernels)


class Codes(nn.Module):
    """A weight as codes with a scale a column, or a scale and a zero point for each group of so many codes."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, n: int, k: int, bits: int, group: int = 0) -> None:
        super().__init__()
        top = 1 << (bits - 1)
        codes = torch.randint(-top, top, (n, k), dtype=torch.int8)
        codes.view(-1)[:2] = torch.tensor([-top, top - 1])
        groups = k // group if group else 1
        self.register_buffer("codes", codes)
        self.register_buffer("scales", torch.rand(n, groups, 1) * 0.01 + 1e-3)
        self.register_buffer("zeros", torch.randint(-2, 3, (n, groups, 1), dtype=torch.int8) if group else None)

    def forward(self) -> Tensor:
        n, groups, _ = self.scales.shape
        values = self.codes.view(n, groups, -1).float()
        values = values if self.zeros is None else values - self.zeros.float()
        return (values * self.scales).flatten(1)


class Coded(nn.Module):
    def __init__(self, k: int, n: int, bits: int, group: int = 0) -> None:
        super().__init__()
        self.weight, self.bias = Codes(n, k, bits, group), nn.Parameter(torch.randn(n))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(), self.bias)


class Attention(nn.Module):
    """Queries of other heads than keys and values; the last two are updated in place of a cache's rows, or read as they are."""

    def __init__(self, layers: Sequence[nn.Module], heads: Sequence[int]) -> None:
        super().__init__()
        self.layers, self.heads = nn.ModuleList(layers), heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (h, -1)).transpose(1, 2) for layer, h in zip(self.layers, self.heads, strict=True)
        )
        k, v = (t.repeat_interleave(self.heads[0] // self.heads[1], 1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def linears(k: int, sizes: Sequence[int], how: str) -> list[nn.Module]:
    match how:
        case "codes":
            return [Coded(k, n, 8) for n in sizes]
        case "groups":
            return [Coded(k, n, 4, 16) for n in sizes]
    return [nn.Linear(k, n, bias=how != "no bias") for n in sizes]


@pytest.mark.parametrize("how", ["bias", "no bias", "codes", "groups"])
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("heads", [(4, 2, 2), (3, 1, 1)])
def test_queries_keys_and_values(heads: tuple[int, int, int], rows: int, how: str) -> None:
    model = Attention(linears(48, [16 * h for h in heads], how), heads)
    _, _, program = compiled(model, torch.randn(2, rows, 48))
    assert contractions(program) == 1
    packed = [d for d in program.derived if d.function != "as_is"]
    assert {d.source[0] for d in packed} == {"joined"}, (
        "weights are packed once, and the joined ones are not kept beside"
    )
    torch._dynamo.reset()
    for seed in range(2):
        x = torch.randn(2, 48, rows, generator=torch.Generator().manual_seed(seed)).mT
        assert_exact(model, (x,), torch.compile(model, backend="effc"))


@pytest.mark.parametrize("how", ["no bias", "bias", "codes"])
def test_the_numbers_of_the_separate_ones(how: str) -> None:
    layers = linears(600, [33, 7, 96], how)

    def merged(x: Tensor) -> Tensor:
        return torch.cat([layer(x).roll(1, -1) for layer in layers], -1)

    x = torch.randn(1, 600)
    _, result, program = compiled(merged, x)
    assert contractions(program) == 1
    for layer, part in zip(layers, result.split([33, 7, 96], -1), strict=True):
        torch._dynamo.reset()
        _, alone, _ = compiled(layer, x)
        assert torch.equal(part, alone.roll(1, -1))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(64, 160), nn.Linear(64, 160), nn.Linear(160, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("rows", "expected"), [(1, 2), (512, 3)])
def test_a_gate_where_its_activation_leaves_the_kernel_cheaply(rows: int, expected: int) -> None:
    model, x = Gated(), torch.randn(rows, 64)
    _, _, program = compiled(model, x)
    assert contractions(program) == expected
    torch._dynamo.reset()
    assert_exact(model, (x,), torch.compile(model, backend="effc"))


class Columns(nn.Module):
    """Weights that lie in columns, at odd offsets, two of them in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.other = nn.Parameter(torch.randn(70, 40)), nn.Parameter(torch.randn(70, 40))

    def forward(self, x: Tensor) -> Tensor:
        parts = (self.whole[3:33, 1:18], self.other[:30, 5:28], self.whole[40:70, :2])
        return torch.cat([(x @ w).softmax(-1) for w in parts], -1)


def test_weights_that_lie_in_columns_or_are_parts_of_one() -> None:
    model, x = Columns(), torch.randn(3, 30)
    _, _, program = compiled(model, x)
    assert contractions(program) == 1
    torch._dynamo.reset()
    assert_exact(model, (x,), torch.compile(model, backend="effc"))


def test_not_where_a_result_is_returned_or_factors_differ() -> None:
    a, b, c = nn.Linear(24, 32), nn.Linear(24, 32), nn.Linear(20, 32)
    w = torch.randn(32, 24)
    x, y = torch.randn(3, 24), torch.randn(3, 20)
    cases = {
        "returned": (lambda x, y, w: (a(x), b(x).softmax(-1)), 2),
        "returned, after a pointwise operation": (lambda x, y, w: (a(x).relu(), b(x).softmax(-1)), 2),
        "another activation": (lambda x, y, w: a(x).softmax(-1) + c(y).softmax(-1), 2),
        "no constant": (lambda x, y, w: a(x).softmax(-1) + (x @ w.mT).softmax(-1), 2),
        "one that needs the other": (lambda x, y, w: b(a(x) @ w).softmax(-1), 3),
    }
    for name, (model, expected) in cases.items():
        torch._dynamo.reset()
        _, _, program = compiled(model, x, y, w)
        assert contractions(program) == expected, name
        assert not program.joined, name


def test_a_weight_that_changes_is_joined_anew() -> None:
    model = Attention(linears(32, [32, 32, 32], "bias"), (2, 2, 2))
    x = torch.randn(1, 4, 32)
    fast, before, _ = compiled(model, x)
    with torch.no_grad():
        for parameter in model.layers[2].parameters():
            parameter.mul_(2)
        torch.testing.assert_close(fast(x), 2 * before)


def test_a_saved_model_holds_the_joined_weights(tmp_path: Path) -> None:
    model = Attention(linears(32, [64, 32, 32], "codes"), (4, 2, 2)).eval()
    x = torch.randn(1, 4, 32)
    _, expected, _ = compiled(model, x)
    effc.save(model, (x,), tmp_path / "model")
    assert torch.equal(effc.load(tmp_path / "model")(x), expected)


def test_checked_against_aten() -> None:
    model = Attention(linears(32, [64, 32, 32], "bias"), (4, 2, 2))
    x = torch.randn(1, 4, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="effc", options={"check": True})(x), model(x))
