"""A 3D U-Net and one step of a diffusion U-Net with attention and a time embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .entry import Case, Entry, Inputs, generator, normal, settle


class DoubleConv3d(nn.Sequential):
    def __init__(self, inp: int, out: int) -> None:
        super().__init__(
            nn.Conv3d(inp, out, 3, padding=1, bias=False), nn.BatchNorm3d(out), nn.ReLU(),
            nn.Conv3d(out, out, 3, padding=1, bias=False), nn.BatchNorm3d(out), nn.ReLU(),
        )  # fmt: skip


class UNet3d(nn.Module):
    """Çiçek et al., 2016: max pooling down, transposed convolutions up, skips concatenated."""

    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        widths = [width << i for i in range(depth + 1)]
        self.down = nn.ModuleList(DoubleConv3d(i, o) for i, o in zip([1, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose3d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(DoubleConv3d(2 * w, w) for w in reversed(widths[:-1]))
        self.pool, self.head = nn.MaxPool3d(2), nn.Conv3d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        out: Tensor = self.head(x)
        return out


class TimeResBlock(nn.Module):
    """Group norm, SiLU, convolution, with the time embedding added between (Ho et al., 2020)."""

    def __init__(self, inp: int, out: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inp), nn.Conv2d(inp, out, 3, padding=1)
        self.time = nn.Linear(time, out)
        self.norm2, self.conv2 = nn.GroupNorm(4, out), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(inp, out, 1) if inp != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        out: Tensor = self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))
        return out


class SpatialAttention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(4, channels),
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, h, w)
        out: Tensor = x + self.out(y)
        return out


class DiffusionUNet(nn.Module):
    """Predicts the noise in ``x [b, 3, s, s]`` at time steps ``t [b]``."""

    def __init__(self, width: int, multiples: tuple[int, ...], heads: int) -> None:
        super().__init__()
        self.width, time = width, width * 4
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        widths = [width * m for m in multiples]
        self.down = nn.ModuleList(TimeResBlock(i, o, time) for i, o in zip([width, *widths], widths, strict=False))
        self.shrink = nn.ModuleList(nn.Conv2d(w, w, 3, 2, 1) for w in widths[:-1])
        self.middle, self.attention = TimeResBlock(widths[-1], widths[-1], time), SpatialAttention(widths[-1], heads)
        self.up = nn.ModuleList(
            TimeResBlock(below + w, w, time)
            for below, w in zip([widths[-1], *reversed(widths)], reversed(widths), strict=False)
        )
        self.norm, self.head = nn.GroupNorm(4, width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.width // 2
        frequency = torch.exp(torch.arange(half, device=x.device) * (-math.log(10000.0) / half))
        angle = t[:, None].to(x.dtype) * frequency
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        x = self.stem(x)
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(self.shrink[i - 1](x) if i else x, time)
            skips.append(x)
        x = self.attention(self.middle(x, time))
        for i, block in enumerate(self.up):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest") if i else x
            x = block(torch.cat([x, skips.pop()], 1), time)
        out: Tensor = self.head(F.silu(self.norm(x)))
        return out


def unet3d(small: bool) -> Case:
    width, depth, side = (4, 2, 8) if small else (16, 3, 64)

    def inputs(seed: int, step: int) -> Inputs:
        return (normal(seed, 1 + step, 1, side, side, side),)

    return Case("unet3d", settle(UNet3d(width, depth, 3), (normal(0, 2, 1, side, side, side),)), inputs)


def diffusion_unet(small: bool) -> Case:
    side = 8 if small else 32
    net = DiffusionUNet(8, (1, 2), 2) if small else DiffusionUNet(64, (1, 2, 4), 4)

    def inputs(seed: int, step: int) -> Inputs:
        batch = 2 + step
        return normal(seed, batch, 3, side, side), torch.randint(0, 1000, (batch,), generator=generator(seed))

    return Case("diffusion_unet", settle(net), inputs)


ENTRIES = (Entry("unet3d", unet3d), Entry("diffusion_unet", diffusion_unet))
