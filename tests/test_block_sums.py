"""Blocks whose lines do not fit L2: slices of channels, whose sums a last product adds up in the result's place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from block_models import Forced
from exactness import assert_exact
from test_block_images import Inverted
from torch import Tensor, nn

from effc.compiler.codegen.cpu.block import choice


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


def sliced(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Any]:
    """The slices of the model's one block of three stages, where L2 holds 10 KiB; the compiled model, which is exact."""
    monkeypatch.setattr(choice, "MOST_BYTES", 10 * 1024)
    made = Forced(monkeypatch)
    fast, kernels = made.run(model, x)
    assert [len(k.stages) for k in kernels] == [3], made.refused
    assert_exact(model, (x,), fast)
    return int(kernels[0].schedule.get("slices", 1)), fast


def image(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "middle", "outputs", "stride", "kernel"),
    [
        ((1, 16, 19, 17), 96, 16, 1, 3),  # three slices, and the input added once
        ((2, 16, 23, 19), 96, 24, 2, 3),  # an even number of images: no thread computes a neighbour's lines
        ((3, 8, 5, 13), 64, 40, 1, 5),
        ((1, 32, 14, 14), 64, 37, 1, 7),  # two slices: none is between the first and the last
    ],
)
def test_slices_are_added_up(
    shape: tuple[int, ...], middle: int, outputs: int, stride: int, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices, _ = sliced(Inverted(shape[1], middle, outputs, kernel, stride), image(*shape), monkeypatch)
    assert slices > 1


def test_what_was_in_the_results_memory_is_not_added(monkeypatch: pytest.MonkeyPatch) -> None:
    x = image(1, 16, 21, 13)
    _, fast = sliced(Inverted(16, 96, 24), x, monkeypatch)
    with torch.no_grad():
        expected = fast(x)
        torch.use_deterministic_algorithms(True)  # new tensors are full of NaN
        try:
            assert torch.empty(4).isnan().all()
            assert torch.equal(fast(x), expected)
        finally:
            torch.use_deterministic_algorithms(False)


class Acting(Inverted):
    """What follows the last sum is not linear: it must see all of it, and once."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x)) + x


def test_what_follows_the_sum_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slices, _ = sliced(Acting(16, 96, 16), image(1, 16, 21, 13), monkeypatch)
    assert slices > 1


def test_a_nan_reaches_its_window_and_calls_do_not_see_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Inverted(16, 96, 8), image(1, 16, 20, 9)
    _, fast = sliced(model, x, monkeypatch)
    with torch.no_grad():
        plain = fast(x)
        spoiled = x.clone()
        spoiled[0, 3, 10, 4] = float("nan")
        got = fast(spoiled).isnan()
        assert got[:, :, 9:12, 3:6].all()
        assert got.sum() == 8 * 9
        assert torch.equal(fast(x), plain)


def test_threads_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = image(3, 16, 31, 11)
    _, fast = sliced(Inverted(16, 96, 16), x, monkeypatch)
    threads = torch.get_num_threads()
    with torch.no_grad():
        two = fast(x)
        try:
            torch.set_num_threads(1)
            assert torch.equal(two, fast(x))
        finally:
            torch.set_num_threads(threads)


class Further(Inverted):
    """The expanded image is added to the depthwise convolution's: a stage before the last reads a channel alone, as it must."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x)
        result: Tensor = self.project(self.depthwise(y) + y)
        return result


def test_a_shortcut_around_the_depthwise_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    slices, _ = sliced(Further(16, 96, 24), image(1, 16, 18, 10), monkeypatch)
    assert slices > 1


def test_channels_that_no_slice_divides_are_not_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MOST_BYTES", 10 * 1024)
    made, model, x = Forced(monkeypatch), Inverted(16, 74, 16), image(1, 16, 19, 17)
    fast, kernels = made.run(model, x)
    assert all("slices" not in dict(k.schedule.parameters) for k in kernels)
    assert_exact(model, (x,), fast)
