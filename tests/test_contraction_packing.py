"""Packed panels hold each weight once, where the kernel looks for it."""

from __future__ import annotations

import pytest
import torch

from effc.runtime.derive import derive


@pytest.mark.parametrize("n", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("k", [0, 1, 7, 8])
@pytest.mark.parametrize(
    ("dtype", "group", "filled"),
    [
        (torch.float32, 1, 1),
        (torch.bfloat16, 1, 1),
        (torch.bfloat16, 2, 2),
        (torch.bfloat16, 2, 32),
        (torch.int8, 1, 1),
    ],
)
def test_linear_weight(n: int, k: int, dtype: torch.dtype, group: int, filled: int) -> None:
    weight = torch.randint(-100, 100, (n, k)).to(dtype)
    attributes = {
        "offset": 0,
        "sizes": (n, k),
        "strides": (k, 1),
        "batch": 0,
        "inner": 1,
        "nr": 16,
        "group": group,
        "filled": filled,
    }
    out = derive("pack_panels", weight, attributes)
    assert out.is_contiguous()
    assert out.dtype == dtype
    flat = out.reshape(1, -(-n // 16), -(-k // filled) * (filled // group), 16, group)
    for column in range(-(-n // 16) * 16):
        for row in range(-(-k // filled) * filled):
            expected = weight[column, row] if column < n and row < k else torch.zeros((), dtype=dtype)
            assert flat[0, column // 16, row // group, column % 16, row % group] == expected


def test_batched_view_with_offset_and_two_summed_dims() -> None:
    weight = torch.randn(3, 5, 4, 2)[1:]  # [batch, C, N, taps], starting at an offset of its storage
    out = derive(
        "pack_panels",
        weight,
        {
            "offset": 8,
            "sizes": (2, 4, 2, 4),
            "strides": (40, 2, 1, 8),
            "batch": 1,
            "inner": 1,
            "nr": 8,
            "group": 1,
            "filled": 1,
        },
    )
    expected = weight[:, 1:].permute(0, 3, 1, 2).reshape(2, 1, 8, 4)
    assert torch.equal(out[..., :4], expected)
    assert (out[..., 4:] == 0).all()
