"""Blocks whose stages multiply bytes: what lies between is bytes too, and every result is that of the layers one by one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed
from amx_machine import AMX, needs_vectors
from block_models import Forced
from kernels import HOST
from torch import Tensor, nn
from torch.nn import functional as F

from effc.compiler.codegen.cpu.block.choice import Block, block_of
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import KernelSpec

Q: Any = torch.ops.quantized_decomposed

#: Of what the layers make: a step of the result, and of what lies between, whose zero is the least byte.
_RESULT, _BETWEEN = 0.11, 6 / 255


#: This CPU without tile registers: bytes that they multiply are no stages.
VECTORS = replace(HOST, features=HOST.features - {"amx_tile", "amx_bf16", "amx_int8"})


@pytest.fixture(autouse=True)
def _by_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(11)
    monkeypatch.setattr(Target, "host", staticmethod(lambda: VECTORS))


def observed(x: Tensor, scale: float, zero: int) -> Tensor:
    """``x`` in steps of ``scale``, as an exported model writes it."""
    codes = Q.quantize_per_tensor(x, scale, zero, -128, 127, torch.int8)
    found: Tensor = Q.dequantize_per_tensor(codes, scale, zero, -128, 127, torch.int8)
    return found


class Convolution(nn.Module):
    """Weights of bytes with a scale a channel."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, groups: int = 1, **keywords: Any) -> None:
        super().__init__()
        self.register_buffer(
            "weight", torch.randint(-127, 128, (outputs, inputs // groups, kernel, kernel), dtype=torch.int8)
        )
        self.register_buffer("scales", torch.rand(outputs) * 0.01 + 1e-3)
        self.register_buffer("zeros", torch.zeros(outputs, dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(outputs))
        self.keywords = {"groups": groups, **keywords}

    def forward(self, x: Tensor) -> Tensor:
        weight = Q.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
        return F.conv2d(x, weight, self.bias, **self.keywords)


class Inverted(nn.Module):
    """MobileNetV2's block of bytes; ``keywords`` of its depthwise convolution."""

    def __init__(self, inputs: int, middle: int, **keywords: Any) -> None:
        super().__init__()
        self.expand, self.project = Convolution(inputs, middle), Convolution(middle, inputs)
        self.depthwise = Convolution(middle, middle, 3, middle, **keywords)

    def forward(self, x: Tensor) -> Tensor:
        y = observed(F.relu6(self.expand(observed(x, 0.04, 2))), _BETWEEN, -128)
        y = observed(F.relu6(self.depthwise(y)), _BETWEEN, -128)
        return observed(self.project(y), _RESULT, -10)


def check(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch, stages: list[int], lines: int | None) -> None:
    x = x.to(memory_format=torch.channels_last)
    fast, kernels = Forced(monkeypatch, lines).run(model, x)
    blocks = [k for k in kernels if k.template == "block"]
    assert [len(k.stages) for k in blocks] == stages, [k.template for k in kernels]
    assert all("i8" in {o.dtype for o in k.operands if o.role == "scratch"} for k in blocks)
    with torch.no_grad():
        steps = (fast(x) - model(x)).abs() / _RESULT
    assert steps.max() <= 1.01  # one step, where the rounding of sums decides a tie
    assert (steps > 0.5).float().mean() < 1e-2


@pytest.mark.parametrize(
    ("keywords", "size", "lines"),
    [({}, (23, 19), 2), ({"stride": 2}, (21, 16), 3), ({"dilation": 2}, (12, 9), None), ({}, (5, 40), 1)],
)
def test_inverted_residuals(
    keywords: dict[str, int], size: tuple[int, int], lines: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without padding all three are one kernel, with what rounds the input."""
    check(Inverted(13, 37, **keywords), torch.randn(2, 13, *size), monkeypatch, [4], lines)


def test_a_border_that_is_not_zero_parts_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero is the byte -128 there, so the image between two blocks is copied into a frame of these."""
    check(Inverted(16, 48, padding=1), torch.randn(1, 16, 20, 17), monkeypatch, [2, 2], 4)


@needs_vectors
def test_panels_for_tile_registers_are_not_read_by_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 lines of 5 pixels are rows enough for tile registers, whose panels fill 37 bytes of each tap to 64; one line is not."""
    asked: list[tuple[KernelSpec, Collection[int]]] = []

    class Asking(Forced):
        def _block(self, spec: KernelSpec, constants: Collection[int], target: Target) -> Block | str:
            asked.append((spec, constants))
            return super()._block(spec, constants, target)

    Asking(monkeypatch, 2).run(Inverted(37, 32), torch.randn(1, 37, 100, 5).to(memory_format=torch.channels_last))
    of_lines = [(s, c) for s, c in asked if isinstance(block_of(s, c, VECTORS, 2), Block)]
    refusals = {block_of(s, c, AMX, 2) for s, c in of_lines}
    assert all(isinstance(reason, str) for reason in refusals), refusals
    assert "panels for tile registers, for which a line has too few rows" in refusals
