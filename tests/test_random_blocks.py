"""Random blocks of networks equal float64's: as they are compiled, and with every block that can be built, whether it pays or not.

A few run always, 240 as slow tests. ``random_block(seed)`` gives a case again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import assert_exact
from in_process import compiled_here
from random_blocks import Several, random_block
from torch import nn

from effc.compiler.pipeline import blocks

#: Blocks that are compiled as one model.
_TOGETHER = 6
_QUICK, _ALL = 18, 240

Compile = Callable[[nn.Module], Callable[..., Any]]


def _check(first: int, compile_: Compile, dtype: torch.dtype = torch.float32) -> None:
    seeds = range(first, first + _TOGETHER)
    models, inputs = zip(*map(random_block, seeds), strict=True)
    model, given = Several(models).eval().to(dtype), tuple(x.to(dtype) for x in inputs)
    with torch.no_grad():
        assert_exact(model, given, compile_(model), context=f"output i is of seed {first} + i:")


def _as_ever(model: nn.Module) -> Callable[..., Any]:
    fast: Callable[..., Any] = torch.compile(model, backend="effc", fullgraph=True, options={"fallback": "error"})
    return fast


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever can be one kernel is one."""
    monkeypatch.setattr(blocks, "saved", lambda found: float(len(found.spec.stages)))


@pytest.mark.parametrize("first", range(0, _QUICK, _TOGETHER))
def test_blocks(first: int) -> None:
    _check(first, _as_ever)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(_QUICK, _ALL, _TOGETHER))
def test_many_blocks(first: int) -> None:
    _check(first, _as_ever)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_blocks(dtype: torch.dtype) -> None:
    _check(_QUICK, compiled_here, dtype)


@pytest.mark.slow
@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", range(0, _ALL, _TOGETHER))
def test_many_fused_blocks(first: int, dtype: torch.dtype) -> None:
    _check(first, compiled_here, dtype)


def test_blocks_are_of_all_kinds() -> None:
    text = "\n".join(str(random_block(seed)[0]) for seed in range(_ALL))
    for kind in (
        "Conv2d", "groups=", "stride=(2, 2)", "dilation=(2, 2)", "kernel_size=(7, 1)", "BatchNorm2d", "ChannelNorm",
        "Linear", "LayerNorm", "RMSNorm", "Gated", "Excitation", "MaxPool2d", "AvgPool2d", "GELU", "ReLU6",
    ):  # fmt: skip
        assert kind in text, kind


def test_a_seed_gives_the_same_block() -> None:
    (one, x), (again, y) = random_block(7), random_block(7)
    assert str(one) == str(again)
    assert torch.equal(x, y)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), again.parameters(), strict=True))
