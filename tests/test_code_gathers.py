"""Embeddings of quantized tables: bytes are gathered, and no table of floats is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # defines the ops
from torch import Tensor, nn
from torch.nn import functional as F

from effc.compiler.capture.recording import record

Q = torch.ops.quantized_decomposed


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(3)


class Table(nn.Module):
    """Codes ``[n, k]``, a byte each, with a scale and a zero point for each row, or for each ``group`` of a row."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, n: int, k: int, group: int, low: int, high: int, zero: int = 0) -> None:
        super().__init__()
        shape = (n, k // group) if group else (n,)
        self.register_buffer("codes", torch.randint(low, high + 1, (n, k), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(shape) * 0.1 + 1e-3)
        self.register_buffer("zeros", torch.full(shape, zero, dtype=torch.int64))
        self.group, self.limits = group, (low, high)

    def floats(self) -> Tensor:
        given = (self.codes, self.scales, self.zeros)
        if self.group:
            result: Tensor = Q.dequantize_per_channel_group(*given, *self.limits, torch.int8, self.group, torch.float32)
        else:
            result = Q.dequantize_per_channel(*given, 0, *self.limits, torch.int8)
        return result


def run(function: Callable[..., Any], *inputs: Tensor) -> tuple[Any, list[set[str]]]:
    """The result of the compiled function; of each kernel, those that prepare parameters among them, the dtypes that it reads."""
    compiled = torch.compile(function, backend="effc", options={"fallback": "error"})
    with record() as recording, torch.no_grad():
        result = compiled(*inputs)
    (program, _), *_ = recording.programs
    programs = [program] + ([program.prepare] if program.prepare else [])
    return result, [{o.dtype for o in k.operands if o.role != "write"} for p in programs for k in p.kernels]


@pytest.mark.parametrize("index", [(3, 5), (0,)])
@pytest.mark.parametrize(("low", "high", "zero"), [(-128, 127, 0), (-128, 127, 3), (-8, 7, -2)])
@pytest.mark.parametrize(("n", "k", "group"), [(50, 64, 0), (50, 64, 32), (7, 35, 5), (1, 31, 0), (9, 16, 0)])
def test_rows_of_a_quantized_table(
    n: int, k: int, group: int, low: int, high: int, zero: int, index: tuple[int, ...]
) -> None:
    table, i = Table(n, k, group, low, high, zero), torch.randint(0, n, index)
    got, kernels = run(lambda i: F.embedding(i, table.floats()), i)
    assert torch.equal(got, F.embedding(i, table.floats()))
    if i.numel():
        assert len(kernels) == 1
        assert kernels[0] >= {"i64", "i8"}


@pytest.mark.parametrize("group", [0, 16])
def test_codes_gathered_by_the_model(group: int) -> None:
    table, i = Table(50, 64, group, -8, 7), torch.randint(0, 50, (4, 6))

    def function(i: Tensor) -> Tensor:
        codes, scales = table.codes[i].float(), table.scales[i]
        if not group:
            return codes * scales[..., None]
        result: Tensor = (codes.unflatten(-1, (-1, group)) * scales[..., None]).flatten(-2)
        return result

    got, kernels = run(function, i)
    assert torch.equal(got, function(i))
    assert not any(k == {"f32"} for k in kernels)


def test_the_sizes_of_the_indices_may_vary() -> None:
    table = Table(50, 64, 16, -8, 7)
    compiled = torch.compile(lambda i: F.embedding(i, table.floats()), backend="effc", dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3), (5, 1), (7, 11)):
            i = torch.randint(0, 50, shape)
            assert torch.equal(compiled(i), F.embedding(i, table.floats()))


def test_an_index_outside_the_table_is_an_error() -> None:
    table = Table(50, 64, 16, -8, 7)
    compiled = torch.compile(lambda i: F.embedding(i, table.floats()), backend="effc")
    with torch.no_grad(), pytest.raises(IndexError, match="out of bounds for dimension 0 with size 50"):
        compiled(torch.tensor([3, 50]))


def test_changed_codes_are_taken() -> None:
    table, i = Table(50, 64, 16, -8, 7), torch.arange(50)
    compiled = torch.compile(lambda i: F.embedding(i, table.floats()), backend="effc")
    with torch.no_grad():
        compiled(i)
        table.codes[7] = 5
        table.scales[9] = 3.0
        assert torch.equal(compiled(i), F.embedding(i, table.floats()))


def test_a_table_that_the_head_multiplies_by() -> None:
    """Tied embeddings: both readers take bytes."""
    table, i = Table(50, 64, 16, -8, 7), torch.randint(0, 50, (2, 6))

    def function(i: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.embedding(i, table.floats())), table.floats())

    got, kernels = run(function, i)
    torch.testing.assert_close(got, function(i))
    assert {"i64", "i8"} <= kernels[0]
    assert "i8" in kernels[1]
    assert not any("i8" in k for k in kernels[2:])  # no floats of the table are prepared


@pytest.mark.parametrize("bits", [4, 8])
def test_embeddings_of_torchao(bits: int) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Embedding(60, 64)
    config = quantization.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"), granularity=quantization.PerGroup(32)
    )
    quantization.quantize_(model, config, lambda m, name: isinstance(m, nn.Embedding))
    i = torch.randint(0, 60, (3, 7))
    with torch.no_grad():
        got, kernels = run(model, i)
        assert torch.equal(got, model(i))
    assert any({"i64", "i8"} <= k for k in kernels)
    assert all(k == {"i64", "f32"} or "i8" in k for k in kernels)  # scales alone are gathered apart


def test_a_table_of_floats_is_read_as_it_is() -> None:
    """A product of two tables takes more bytes than its result."""
    first, second = nn.Parameter(torch.randn(50, 64)), nn.Parameter(torch.randn(50, 64))
    i = torch.randint(0, 50, (3, 5))
    got, kernels = run(lambda i: F.embedding(i, first * second), i)
    assert torch.equal(got, F.embedding(i, first * second))
    assert kernels[0] == {"i64", "f32"}
    assert len(kernels) == 2
