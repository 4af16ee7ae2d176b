"""Random blocks of networks: layers in a row, with a skip or without, at odd sizes. A seed gives the same block in every process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SIZES = (1, 2, 3, 5, 7, 8, 9, 13, 14, 17, 23, 28)
_ACTIVATIONS: Sequence[Callable[[], nn.Module]] = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.Identity,
)  # fmt: skip


class Block(nn.Module):
    """``layers``; where ``skip``, the input is added to their result, which is scaled by channel where there is ``scale``."""

    def __init__(self, layers: Sequence[nn.Module], skip: bool, scale: nn.Parameter | None, after: nn.Module) -> None:
        super().__init__()
        self.layers, self.skip, self.scale, self.after = nn.Sequential(*layers), skip, scale, after

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        if self.scale is not None:
            y = y * self.scale
        if self.skip:
            y = x + y
        z: Tensor = self.after(y)
        return z


class Several(nn.Module):
    """Blocks, each with an input of its own: what is compiled once costs less than one by one."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [block(x) for block, x in zip(self.blocks, inputs, strict=True)]


class ChannelNorm(nn.LayerNorm):
    """Of images, over channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Excitation(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return x * gate


class Gated(nn.Module):
    """Half of the channels gates the other half."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.up(x)
        gate, value = both.chunk(2, -1)
        return F.silu(gate) * value


@dataclass
class _Image:
    """Draws layers for images of ``width`` channels and ``size`` pixels; with ``keeps`` none that changes the size."""

    rng: Random
    width: int
    size: tuple[int, int]
    keeps: bool

    def layer(self, depth: int = 0) -> nn.Module:
        draw: Callable[[int], nn.Module] = self.rng.choice(
            [self.pointwise] * 4 + [self.square] * 3 + [self.depthwise] * 4 + [self.pool, self.excitation, self.nested]
            + [lambda depth: nn.BatchNorm2d(self.width), lambda depth: ChannelNorm(self.width)]
        )  # fmt: skip
        return draw(depth)

    def pointwise(self, depth: int) -> nn.Module:
        return self._convolution(self.rng.randint(1, 70), (1, 1), 1)

    def square(self, depth: int) -> nn.Module:
        groups = self.rng.choice([g for g in (1, 1, 2, 3, 4, 8) if self.width % g == 0])
        k = self.rng.choice([(3, 3), (3, 3), (5, 5), (2, 2), (1, 3)])
        return self._convolution(self.rng.randint(1, 40) * groups, k, groups)

    def depthwise(self, depth: int) -> nn.Module:
        k = self.rng.choice([(3, 3), (3, 3), (5, 5), (7, 7), (1, 7), (7, 1)])
        return self._convolution(self.width * self.rng.choice((1, 1, 1, 2)), k, self.width)

    def pool(self, depth: int) -> nn.Module:
        stride = 1 if self.keeps else self.rng.choice((1, 2))
        self.size = (-(-self.size[0] // stride), -(-self.size[1] // stride))
        if self.rng.random() < 0.5:
            return nn.MaxPool2d(3, stride, 1)
        return nn.AvgPool2d(3, stride, 1, count_include_pad=self.rng.random() < 0.5)

    def excitation(self, depth: int) -> nn.Module:
        return Excitation(self.width, self.rng.randint(1, 9))

    def nested(self, depth: int) -> nn.Module:
        if depth:
            return self.pointwise(depth)
        inner = _Image(self.rng, self.width, self.size, keeps=True)
        return _finished(self.rng, inner, [inner.layer(1) for _ in range(self.rng.randint(1, 3))], self.width, True)

    def restored(self, width: int) -> nn.Module:
        self.width, before = width, self.width
        return nn.Conv2d(before, width, 1)

    def scale(self) -> nn.Parameter:
        return nn.Parameter(torch.randn(self.width, 1, 1))

    def norm(self) -> nn.Module:
        return nn.BatchNorm2d(self.width)

    def _convolution(self, width: int, k: tuple[int, int], groups: int) -> nn.Module:
        if self.keeps and any(size % 2 == 0 for size in k):
            k = (3, 3)
        dilation = self.rng.choice((1, 1, 1, 2, 3))
        same = [(size - 1) * dilation // 2 for size in k]
        padding, stride = same, (1, 1)
        if not self.keeps and self.rng.random() < 0.5:
            stride = self.rng.choice([(1, 1), (2, 2), (2, 1), (3, 3)])
            padding = [self.rng.randint(p // 2, p + 1) for p in same]
        found = nn.Conv2d(
            self.width, width, k, stride, (padding[0], padding[1]), dilation, groups, self.rng.random() < 0.5
        )
        after = [
            (n + 2 * p - dilation * (size - 1) - 1) // s + 1
            for n, p, size, s in zip(self.size, padding, k, stride, strict=True)
        ]
        if min(after) < 1:
            return nn.Identity()
        self.width, self.size = width, (after[0], after[1])
        return found


@dataclass
class _Rows:
    """Draws layers for rows of ``width`` channels."""

    rng: Random
    width: int

    def layer(self) -> nn.Module:
        width = self.width
        kind = self.rng.choice(("linear", "linear", "linear", "gated", "norm", "rms"))
        if kind == "norm":
            return nn.LayerNorm(width)
        if kind == "rms":
            return nn.RMSNorm(width)
        self.width = self.rng.randint(1, 70)
        return Gated(width, self.width) if kind == "gated" else nn.Linear(width, self.width, self.rng.random() < 0.5)

    def restored(self, width: int) -> nn.Module:
        self.width, before = width, self.width
        return nn.Linear(before, width)

    def scale(self) -> nn.Parameter:
        return nn.Parameter(torch.randn(self.width))

    def norm(self) -> nn.Module:
        return nn.LayerNorm(self.width)


def _finished(rng: Random, state: _Image | _Rows, layers: Sequence[nn.Module], width: int, skip: bool) -> Block:
    """A block of ``layers``, with activations and norms between, that has a skip where it is to have one."""
    found = list[nn.Module]()
    for layer in layers:
        found += [layer, rng.choice(_ACTIVATIONS)()]
    if skip and (state.width != width or rng.random() < 0.5):
        found.append(state.restored(width))
    scale = state.scale() if rng.random() < 0.3 else None
    after = rng.choice((nn.Identity, nn.Identity, nn.ReLU, nn.Hardswish))()
    return Block(found, skip, scale, after)


def random_block(seed: int) -> tuple[Block, Tensor]:
    """A block as training leaves it, and an input."""
    rng = Random(seed)
    torch.manual_seed(seed)
    width, batch, skip = rng.randint(1, 70), rng.randint(1, 3), rng.random() < 0.7
    if rng.random() < 0.75:
        height, breadth = rng.choice(_SIZES), rng.choice(_SIZES)
        image = _Image(rng, width, (height, breadth), keeps=skip)
        layers = list[nn.Module]()
        for _ in range(rng.randint(1, 5)):
            layers.append(image.layer())
            if rng.random() < 0.4:
                layers.append(image.norm())
        x = torch.randn(batch, width, height, breadth)
        if rng.random() < 0.3:
            x = x.to(memory_format=torch.channels_last)
        block = _finished(rng, image, layers, width, skip)
    else:
        rows = _Rows(rng, width)
        layers = [rows.layer() for _ in range(rng.randint(1, 5))]
        x = torch.randn(batch, rng.choice((1, 2, 7, 31, 64, 197)), width)
        block = _finished(rng, rows, layers, width, skip)
    with torch.no_grad():
        for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            norm.weight.normal_()
            norm.bias.normal_()
    return block.eval(), x
