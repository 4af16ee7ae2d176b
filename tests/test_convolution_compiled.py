"""Convolutions through ``torch.compile``: transposed ones, and Winograd's method inside models."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
from exactness import assert_exact
from torch import nn

from effc.compiler.capture import record

Compiler = Callable[..., Callable[..., Any]]
_TRANSPOSED: tuple[Callable[..., nn.Module], ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(
    ("channels", "kernel", "groups", "space"),
    [
        ((32, 16), (2, 2, 2), 1, (5, 6, 7)),
        ((16, 24), (2, 3), 2, (5, 6)),
        ((8, 5), (3, 1), 1, (4, 5)),
        ((4, 16), (4,), 1, (9,)),
    ],
)
def test_transposed_without_overlap(
    channels: tuple[int, int],
    kernel: tuple[int, ...],
    groups: int,
    space: tuple[int, ...],
    dynamic: bool | None,
    compiled: Compiler,
) -> None:
    """Every output has one tap: a matrix product, not a convolution over zeros."""
    rank = len(kernel) - 1
    up = _TRANSPOSED[rank](*channels, kernel, stride=kernel, groups=groups)
    model = nn.Sequential(up, nn.ReLU(), _PLAIN[rank](channels[1], 8, 3, padding=1)).eval()
    fast = compiled(model, dynamic=dynamic, fullgraph=True)
    with torch.no_grad(), record() as recording:
        for batch in (2, 3):
            assert_exact(model, (torch.randn(batch, channels[0], *space),), fast, strides=True)
        x = torch.randn(2, channels[0], *space)
        x[0, 1] = float("nan")
        assert torch.equal(fast(x).isnan(), model(x).isnan())
    products = 2 * 2 * channels[0] * channels[1] // groups * prod(kernel) * prod(space)
    assert recording.graphs[0].regions[0].kernels[0].flops == products


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(
    ("channels", "kernel", "options", "space"),
    [
        ((16, 24), (4, 4), {"stride": 2, "padding": 1}, (5, 7)),
        ((8, 5), (3, 3), {"stride": 2, "padding": 1, "output_padding": 1}, (6, 5)),
        ((8, 17), (3, 5), {"stride": (2, 3), "padding": (0, 2)}, (6, 5)),
        ((6, 9), (3, 4), {"stride": 2, "dilation": (2, 3), "groups": 3}, (5, 4)),
        ((4, 6), (2, 1), {"stride": 3, "padding": (1, 0), "output_padding": (2, 1)}, (5, 4)),
        ((16, 16), (3, 3), {"padding": 1, "groups": 4}, (9, 8)),
        ((12, 3), (16,), {"stride": 8, "padding": 4}, (11,)),
        ((12, 3), (10,), {"stride": 5, "output_padding": 3, "bias": False}, (1,)),
        ((3, 8), (3, 4, 2), {"stride": (1, 2, 3), "padding": (2, 1, 0)}, (4, 3, 5)),
        ((4, 4), (64, 64), {"stride": 32, "padding": 16}, (3, 2)),
    ],
)
def test_transposed_with_overlap(
    channels: tuple[int, int],
    kernel: tuple[int, ...],
    options: dict[str, Any],
    space: tuple[int, ...],
    dynamic: bool | None,
    compiled: Compiler,
) -> None:
    """No zero between the inputs is multiplied: each place of an output's phase meets the taps of that phase."""
    up = _TRANSPOSED[len(kernel) - 1](*channels, kernel, **options)
    fast = compiled(up.eval(), dynamic=dynamic, fullgraph=True)
    with torch.no_grad(), record() as recording:
        for batch in (2, 3):
            assert_exact(up, (torch.randn(batch, channels[0], *space),), fast, strides=True)
        x = torch.randn(2, channels[0], *space)
        x[0, 1] = float("nan")
        assert torch.equal(fast(x).isnan(), up(x).isnan())
        out = up(x).shape[2:]
    strides = options.get("stride", 1)
    strides = strides if isinstance(strides, tuple) else (strides,) * len(kernel)
    taps = prod(-(-o // s) * k for o, s, k in zip(out, strides, kernel, strict=True))
    kernels = recording.graphs[0].regions[0].kernels
    assert sum(k.flops for k in kernels) == 2 * 2 * channels[0] * channels[1] // options.get("groups", 1) * taps
    assert sum(k.template == "contraction" for k in kernels) <= 9


def test_phases_are_written_into_the_next_convolutions_padded_input(compiled: Compiler) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(16, 32, 4, 2, 1), nn.Conv2d(32, 8, 3, padding=1)).eval()
    fast = compiled(model, fullgraph=True)
    with torch.no_grad(), record() as recording:
        assert_exact(model, (torch.randn(2, 16, 7, 9),), fast, strides=True)
    ((program, _),) = recording.programs
    called = [program.kernels[call.kernel] for call in program.calls]
    assert sum(k.template == "contraction" for k in called) == 4 + 1
    copies = [k for k in called if k.template == "loops" and any(o.role == "read" for o in k.operands)]
    assert len(copies) == 1  # of the result, into planes of channels


@pytest.mark.parametrize("up", [False, True])
def test_a_result_in_planes_of_channels_is_computed_by_vectors_and_copied(up: bool, compiled: Compiler) -> None:
    model = nn.ConvTranspose2d(24, 32, 4, 2, 1) if up else nn.Conv2d(24, 32, 5, padding=2, groups=2)
    fast = compiled(model.eval(), fullgraph=True)
    with torch.no_grad(), record() as recording:
        assert_exact(model, (torch.randn(2, 24, 9, 11),), fast, strides=True)
    ((program, _),) = recording.programs
    stores = [i for k in program.kernels if k.template == "contraction" for i in k.body if i.op == "store"]
    assert stores
    for store in stores:
        address = store["address"]
        assert any((c := address.coefficient(name)) is not None and c.constant == 1 for name in address.variables())


class Residual(nn.Module):
    """A block of a ResNet: batch norm, an addition and ReLU follow its convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.second(torch.relu(self.first(x)))) + x)


@pytest.mark.parametrize("dynamic", [None, True])
def test_winograd_in_a_residual_block_follows_the_weights(dynamic: bool | None, compiled: Compiler) -> None:
    model = Residual(64).eval()
    assert model.norm.running_mean is not None
    nn.init.normal_(model.norm.running_mean)
    fast = compiled(model, dynamic=dynamic, fullgraph=True)
    with torch.no_grad():
        for size in (13, 16):
            assert_exact(model, (torch.randn(2, 64, size, size + 1),), fast, strides=True)
        model.second.weight.mul_(2)
        assert_exact(model, (torch.randn(2, 64, 16, 17),), fast)


class Bordered(nn.Module):
    """Three blocks whose depthwise convolutions have borders; the first two have equal ones."""

    def __init__(self, channels: int, dilation: int, stride: int) -> None:
        super().__init__()

        def block(stride: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(channels, channels, 1),
                nn.Conv2d(channels, channels, 3, stride, dilation, dilation, groups=channels),
            )

        self.blocks = nn.Sequential(block(1), block(1), block(stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.relu(block(x))
        return x


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(("channels", "dilation", "stride"), [(16, 1, 2), (17, 2, 1), (31, 1, 1)])
def test_borders_stay_zero_from_call_to_call(
    channels: int, dilation: int, stride: int, dynamic: bool | None, compiled: Compiler
) -> None:
    """What a call leaves in the arena, NaN and infinity among it, never reaches the border that the next call reads."""
    model = Bordered(channels, dilation, stride).eval()
    fast = compiled(model, dynamic=dynamic, fullgraph=True)
    with torch.no_grad():
        for batch, height, width in ((2, 7, 5), (1, 11, 13), (2, 7, 5)):
            poison = torch.full((batch, channels, height, width), float("nan"))
            assert fast(poison).isnan().all()
            spot = torch.randn(batch, channels, height, width)
            spot[0, :, 0, 0] = float("inf")
            spot[-1, 0, -1, -1] = float("nan")
            assert torch.equal(fast(spot).isfinite(), model(spot).isfinite())
            assert_exact(model, (torch.randn(batch, channels, height, width),), fast, strides=True)


def test_pooling_keeps_the_convolutions_layout_whatever_the_size(compiled: Compiler) -> None:
    """Channels stay innermost where sizes are symbols: a pooling that turns them outermost takes ten times as long."""
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(32, 17, 1)).eval()
    fast = compiled(model, dynamic=True, fullgraph=True)
    with torch.no_grad(), record() as recording:
        for batch, height, width in ((2, 12, 15), (3, 9, 7), (2, 31, 8)):
            assert_exact(model, (torch.randn(batch, 3, height, width),), fast)
    ((program, _),) = recording.programs
    (pool,) = (k for k in program.kernels if any(i.op == "reduce" for i in k.body))
    store = next(i for i in pool.body if i.op == "store")
    assert [i for i, d in enumerate(pool.dims) if d.size.constant == 32] == [
        i for i in range(len(pool.dims)) if (c := store["address"].coefficient(f"d{i}")) is not None and c.constant == 1
    ]
