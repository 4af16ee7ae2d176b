"""Quantized layers as exported models hold them, and in what dtypes their products are summed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # defines the ops
from torch import Tensor, nn

from effc.compiler.capture.recording import record

Q = torch.ops.quantized_decomposed
RANGES = {torch.int8: (-128, 127), torch.uint8: (0, 255)}


def sums(function: Callable[..., Any], *inputs: Tensor, notes: tuple[str, ...] = ()) -> tuple[Any, list[str]]:
    """The result of the compiled function, and in what its contractions sum, each with the dtypes of its factors in memory.

    ``notes``: patterns of what the report says, one each.
    """
    compiled = torch.compile(function, backend="effc", options={"fallback": "error"})
    with record() as recording, torch.no_grad():
        result = compiled(*inputs)
    assert len(recording.notes) == len(notes), recording.notes
    for pattern, note in zip(notes, recording.notes, strict=True):
        assert re.search(pattern, note), note
    found = []
    for program, _ in recording.programs:
        for call in program.calls:
            spec = program.kernels[call.kernel]
            for instr in spec.body:
                if instr.op == "contract":
                    loads = [i for i in spec.body if i.op == "load"][:2]
                    found.append(f"{'x'.join(sorted(i.dtype for i in loads))}->{instr.dtype}")
    return result, found


def fake(x: Tensor, scale: float, zero: int, dtype: torch.dtype) -> Tensor:
    """Quantized and dequantized."""
    low, high = RANGES[dtype]
    q = Q.quantize_per_tensor(x, scale, zero, low, high, dtype)
    result: Tensor = Q.dequantize_per_tensor(q, scale, zero, low, high, dtype)
    return result


class Weight(nn.Module):
    """Codes of a weight with a scale and a zero point a channel, as exported models hold them."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, *shape: int, dtype: torch.dtype = torch.int8, zero: int | None = 0) -> None:
        super().__init__()
        low, high = RANGES[dtype]
        self.register_buffer("codes", torch.randint(low, high + 1, shape).to(dtype))
        self.register_buffer("scales", torch.rand(shape[0]) * 0.01 + 1e-4)
        self.register_buffer("zeros", None if zero is None else torch.full((shape[0],), zero, dtype=torch.int64))
        self.dtype = dtype

    def forward(self) -> Tensor:
        result: Tensor = Q.dequantize_per_channel(
            self.codes, self.scales, self.zeros, 0, *RANGES[self.dtype], self.dtype
        )
        return result


def torchao_sums(config: str, rows: int, **arguments: Any) -> list[str]:
    """In what two bfloat16 linears sum that torchao's ``config`` quantized; their result is eager's, but for roundings to bfloat16."""
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(96, 70), nn.ReLU(), nn.Linear(70, 48)).bfloat16().eval()
    if "Intx" in config:
        arguments = {**arguments, "granularity": quantization.PerAxis(0)}
    quantization.quantize_(model, getattr(quantization, config)(**arguments))
    x = torch.randn(rows, 96).bfloat16()
    got, found = sums(model, x)
    with torch.no_grad():
        eager = model(x)
    assert (got - eager).norm() <= 0.02 * eager.norm()
    return found
