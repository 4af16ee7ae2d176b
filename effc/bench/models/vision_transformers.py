"""ConvNeXt, ViT and Swin, in plain torch after their papers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .entry import Case, Entry, Inputs, normal, settle


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of NCHW."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """Depthwise 7x7, layer norm, two linears with GELU, layer scale (Liu et al., 2022)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.scale = nn.Parameter(torch.linspace(0.1, 0.5, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        out: Tensor = x + y.permute(0, 3, 1, 2)
        return out


class ConvNext(nn.Module):
    def __init__(self, depths: tuple[int, ...], dims: tuple[int, ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inp = 3
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            if i == 0:
                layers += [nn.Conv2d(inp, dim, 4, 4), LayerNorm2d(dim, eps=1e-6)]
            else:
                layers += [LayerNorm2d(inp, eps=1e-6), nn.Conv2d(inp, dim, 2, 2)]
            layers += [ConvNextBlock(dim) for _ in range(depth)]
            inp = dim
        self.layers = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(inp, eps=1e-6), nn.Linear(inp, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.layers(x).mean((-2, -1))))
        return out


class Attention(nn.Module):
    """Multi-head self-attention with one qkv projection, through ``scaled_dot_product_attention``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, n, c))
        return out


class EncoderBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ViT(nn.Module):
    """Dosovitskiy et al., 2020."""

    def __init__(self, side: int, patch: int, dim: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, dim) * 0.1)
        self.blocks = nn.Sequential(*[EncoderBlock(dim, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out


def _window_bias_index(window: int) -> Tensor:
    """For each pair of positions in a window, the row of the table of relative position biases."""
    coords = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    relative = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0) + window - 1
    return relative[..., 0] * (2 * window - 1) + relative[..., 1]


def _shift_mask(side: int, window: int, shift: int) -> Tensor:
    """-100 between positions of one window that were apart before the cyclic shift: ``[windows, n, n]``."""
    region = torch.zeros(side, side)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(cuts):
        for j, columns in enumerate(cuts):
            region[rows, columns] = i * 3 + j
    w = region.reshape(side // window, window, side // window, window).permute(0, 2, 1, 3).reshape(-1, window * window)
    return (w[:, None, :] != w[:, :, None]).float() * -100.0


class SwinBlock(nn.Module):
    """(Shifted-)window attention with relative position bias (Liu et al., 2021)."""

    index: Tensor
    mask: Tensor | None

    def __init__(self, dim: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.side, self.window, self.shift, self.heads = side, window, shift, heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.5)
        self.register_buffer("index", _window_bias_index(window))
        self.register_buffer("mask", _shift_mask(side, window, shift) if shift else None)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        b, s, _, c = x.shape
        n, w = s // self.window, self.window
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = y.reshape(b, n, w, n, w, c).permute(0, 1, 3, 2, 4, 5).reshape(b * n * n, w * w, c)
        bias = self.table[self.index].permute(2, 0, 1)[None]
        if self.mask is not None:
            bias = (bias + self.mask[:, None]).repeat(b, 1, 1, 1)
        y = self.attention(y, bias).reshape(b, n, n, w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(b, s, s, c)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        out: Tensor = self.reduction(self.norm(x))
        return out


class Swin(nn.Module):
    def __init__(
        self, side: int, window: int, dim: int, depths: tuple[int, ...], heads: tuple[int, ...], classes: int
    ) -> None:
        super().__init__()
        self.patches, self.patch_norm = nn.Conv2d(3, dim, 4, 4), nn.LayerNorm(dim)
        layers: list[nn.Module] = []
        side //= 4
        for stage, (depth, head) in enumerate(zip(depths, heads, strict=True)):
            if stage:
                layers.append(PatchMerging(dim))
                dim, side = dim * 2, side // 2
            shift = window // 2 if side > window else 0
            layers += [SwinBlock(dim, head, side, window, shift if i % 2 else 0) for i in range(depth)]
        self.layers, self.norm, self.head = nn.Sequential(*layers), nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_norm(self.patches(x).permute(0, 2, 3, 1))
        out: Tensor = self.head(self.norm(self.layers(x)).mean((1, 2)))
        return out


def _case(name: str, module: nn.Module, side: int, small: bool) -> Case:
    def inputs(seed: int, step: int) -> Inputs:
        return (normal(seed, (2 if small else 1) + step, 3, side, side),)

    return Case(name, settle(module), inputs)


def convnext_tiny(small: bool) -> Case:
    net = ConvNext((1, 1), (16, 24), 10) if small else ConvNext((3, 3, 9, 3), (96, 192, 384, 768), 1000)
    return _case("convnext_tiny", net, 32 if small else 224, small)


def vit(small: bool, dim: int, heads: int) -> Case:
    net = ViT(32, 8, 32, 2, 4, 10) if small else ViT(224, 16, dim, 12, heads, 1000)
    return _case("vit", net, 32 if small else 224, small)


def vit_base(small: bool) -> Case:
    return vit(small, 768, 12)


def swin_tiny(small: bool) -> Case:
    net = Swin(32, 4, 16, (2, 1), (2, 4), 10) if small else Swin(224, 7, 96, (2, 2, 6, 2), (3, 6, 12, 24), 1000)
    return _case("swin_tiny", net, 32 if small else 224, small)


ENTRIES = (Entry("convnext_tiny", convnext_tiny), Entry("vit_base", vit_base), Entry("swin_tiny", swin_tiny))
