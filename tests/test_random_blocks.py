"""Random blocks of networks equal float64's: quick ones, and many. ``random_block(seed)`` gives a case again."""

from __future__ import annotations

import pytest
import torch
from exactness import assert_exact
from random_blocks import Several, random_block

#: Blocks that are compiled as one model.
_TOGETHER = 6
_QUICK, _ALL = 24, 240


def _check(first: int) -> None:
    seeds = range(first, first + _TOGETHER)
    blocks, inputs = zip(*map(random_block, seeds), strict=True)
    model = Several(blocks).eval()
    with torch.no_grad():
        fast = torch.compile(model, backend="effc", fullgraph=True, options={"fallback": "error"})
        assert_exact(model, inputs, fast, context=f"output i is of seed {first} + i:")


@pytest.mark.parametrize("first", range(0, _QUICK, _TOGETHER))
def test_blocks(first: int) -> None:
    _check(first)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(_QUICK, _ALL, _TOGETHER))
def test_many_blocks(first: int) -> None:
    _check(first)


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
