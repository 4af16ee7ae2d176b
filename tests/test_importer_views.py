"""Views, concatenation, padding and creation against eager through the evaluator; static and symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import importer_harness
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

agrees = partial(importer_harness.agrees, tolerance=0)
X = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: x.flatten(1) + 0,
    "merge_and_split": lambda x: x.reshape(6, 2, 10) + 0,
    "unrelated": lambda x: x.reshape(8, 15) + 0,
    "ones": lambda x: x.reshape(1, 2, 3, 1, 4, 5, 1) + 0,
    "drop_ones": lambda x: x[:1, :1].reshape(4, 5) + 0,
    "to_scalar": lambda x: x[:1, :1, :1, :1].reshape(()) + 0,
    "from_scalar": lambda x: x[0, 0, 0, 1].reshape(1, 1, 1) + 0,
    "permute": lambda x: x.permute(3, 0, 2, 1) + 0,
    "transpose": lambda x: x.transpose(-1, 1).reshape(2, -1) + 0,
    "expand": lambda x: x[:, :1].expand(7, 2, 3, 4, 5) + 0,
    "slice": lambda x: x[:, 1:, ::2, -3:-1] + 0,
    "slice_past_the_end": lambda x: x[:, 2:100, 9:] + 0,
    "select": lambda x: x[1, :, -2] + 0,
    "split": lambda x: torch.cat([p * i for i, p in enumerate(x.split(2, 3))], 3),
    "unequal_split": lambda x: torch.cat(x.split([1, 4], -1)[::-1], -1),
    "chunk": lambda x: x.chunk(3, 1)[2] + 0,
    "unbind": lambda x: x.unbind(2)[3] + 0,
    "diagonal": lambda x: torch.diagonal(x, 1, 1, 3) + 0,
    "negative_diagonal": lambda x: torch.diagonal(x, -2, 3, 2) + 0,
    "flip": lambda x: x.flip(0, -1) + 0,
    "roll": lambda x: torch.roll(x, (1, -2), (0, 3)) + 0,
    "unfold": lambda x: x.unfold(3, 3, 2) + 0,
    "unfold_overlap": lambda x: x.unfold(2, 2, 1) + 0,
    "repeat": lambda x: x.repeat(2, 1, 3, 1) + 0,
    "repeat_new_dims": lambda x: x[0, 0].repeat(3, 1, 2) + 0,
    "repeat_interleave": lambda x: x.repeat_interleave(3, 1) + 0,
    "stack": lambda x: torch.stack([x, x * 2], -1),
    "squeeze": lambda x: x[:1, :, :1].squeeze() + 0,
    "squeeze_dims": lambda x: x[:1, :, :1].squeeze((0, 2)) + 0,
    "window_partition": lambda x: x.view(2, 3, 2, 2, 5).permute(0, 2, 4, 1, 3).reshape(-1, 6) + 0,
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.reshape(2, 12, 1, 5), 2) + 0,
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), value=0.5),
    "negative_pad": lambda x: F.pad(x, (-1, 2, 1, -2)),
    "reflect_pad": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect") + 0,
    "replicate_pad": lambda x: F.pad(x, (1, 2, 1, 0), mode="replicate") + 0,
    "tril": lambda x: x.tril(-1),
    "triu": lambda x: x.triu(2),
    "movedim": lambda x: x.movedim(0, 2) + 0,
    "contiguous": lambda x: x.transpose(1, 2).contiguous().view(2, 12, 5) + 0,
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str) -> None:
    agrees(VIEWS[name], X)


@pytest.mark.parametrize("name", [n for n in VIEWS if n not in ("drop_ones",)])
def test_views_with_symbolic_sizes(name: str) -> None:
    agrees(VIEWS[name], X, dynamic=True)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0, 2), (1, 1), ()])
def test_views_of_empty_and_tiny_tensors(shape: tuple[int, ...]) -> None:
    agrees(lambda x: x.reshape(-1) * 2, torch.randn(shape))
    agrees(lambda x: x.unsqueeze(0).expand(4, *x.shape) + 1, torch.randn(shape))
    agrees(lambda x: torch.stack([x, x]).flip(0), torch.randn(shape))


def test_views_of_strided_inputs_and_other_dtypes() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.int32, torch.uint8, torch.bool):
        x = torch.arange(60).reshape(6, 10).remainder(7).to(dtype)[1::2, ::3]
        agrees(lambda x: torch.cat([x.t().reshape(-1, 1), x.reshape(-1, 1)]), x)


def test_cat_promotes_and_skips_empty_parts() -> None:
    agrees(lambda a, b: torch.cat([a, b]), torch.arange(3), torch.randn(2))
    agrees(lambda a, b: torch.cat([b, a, b], 1), torch.randn(2, 3), torch.randn(2, 0))
    agrees(lambda a, b: torch.cat([b, a]), torch.randn(3), torch.randn(0))
    agrees(lambda a, b: torch.cat([a, b], 1), torch.randn(4, 3), torch.randn(4, 6), dynamic=True)


def test_writes_into_slices() -> None:
    def update(x: Tensor, y: Tensor) -> Tensor:
        x = x.clone()
        x[:, 1:3] = y
        x[0] += 1
        x[:, ::2] *= 2
        return x

    agrees(update, torch.randn(4, 5), torch.randn(4, 2))
    agrees(update, torch.randn(4, 5), torch.randn(4, 2), dynamic=True)
    agrees(lambda x, y: torch.slice_scatter(x, y, 0, 1, 5, 2), torch.randn(6, 3), torch.randn(2, 3))
    agrees(lambda x, y: torch.select_scatter(x, y, 1, -1), torch.randn(6, 3), torch.randn(6))


def test_creation() -> None:
    agrees(lambda x: x + torch.arange(2, 12, 3), torch.zeros(4))
    agrees(lambda x: x + torch.arange(5, device=x.device, dtype=torch.float32), torch.zeros(5))
    agrees(lambda x: x + torch.linspace(0, 1, 5), torch.zeros(5))
    agrees(lambda x: torch.full_like(x, 7, dtype=torch.int32) + torch.eye(3, dtype=torch.int32), torch.zeros(3, 3))
    agrees(lambda x: x.new_full((2, 3), float("inf")), torch.zeros(1))
    agrees(lambda x: torch.ones(x.shape[0], 2) * x.shape[1], torch.zeros(5, 4), dynamic=True)
    agrees(
        lambda x: torch.arange(x.shape[0]) * 2 + torch.zeros_like(x, dtype=torch.int64), torch.zeros(5), dynamic=True
    )


def test_as_strided_inside_a_contiguous_tensor() -> None:
    agrees(lambda x: torch.as_strided(x + 0, (3, 4), (8, 2), 1) * 2, torch.randn(5, 6))
    agrees(lambda x: torch.as_strided(x + 0, (6, 5), (5, 1)) * 2, torch.randn(5, 6))
