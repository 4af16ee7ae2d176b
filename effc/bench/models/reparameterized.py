"""UniRepLKNet's block: a large depthwise convolution beside small dilated ones, which are one convolution in all but name."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Kernel and dilation of the branches beside a 13x13 convolution (Ding et al., 2024, table of DilatedReparamBlock).
BRANCHES_OF_13 = ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))


class DilatedBranches(nn.Module):
    """The sum of depthwise convolutions with batch norms, all "same": ``kernel`` wide, and each of ``branches``. Linear in its input, so it
    equals one convolution whose kernel is the sum of theirs.
    """

    def __init__(self, dim: int, kernel: int, branches: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(dim, dim, k, padding=dilation * (k // 2), dilation=dilation, groups=dim, bias=False)
            for k, dilation in ((kernel, 1), *branches)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in self.convolutions)

    def forward(self, x: Tensor) -> Tensor:
        branches = [norm(conv(x)) for conv, norm in zip(self.convolutions, self.norms, strict=True)]
        out: Tensor = reduce(torch.add, branches)
        return out


class ResponseNorm(nn.Module):
    """Global response normalization of ``[batch, height, width, channels]`` (Woo et al., 2023): each channel by its norm over the image,
    relative to the mean of these over the channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.Parameter(torch.linspace(-0.2, 0.2, dim)),
            nn.Parameter(torch.linspace(-0.1, 0.1, dim)),
        )

    def forward(self, x: Tensor) -> Tensor:
        norms = x.norm(p=2, dim=(1, 2), keepdim=True)
        relative = norms / (norms.mean(-1, keepdim=True) + 1e-6)
        out: Tensor = (self.scale * relative + 1) * x + self.shift
        return out


class Excitation(nn.Module):
    """Squeeze-excitation with ReLU, of a quarter of the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(dim, dim // 4, 1), nn.Conv2d(dim // 4, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.relu(self.down(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.up(scale))


class UniRepLKBlock(nn.Module):
    """`DilatedBranches` of 13x13, batch norm, squeeze-excitation; then linear, GELU, `ResponseNorm`, linear, batch norm, layer scale; and
    a shortcut (Ding et al., 2024). Channels are a multiple of 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mixer = nn.Sequential(DilatedBranches(dim, 13, BRANCHES_OF_13), nn.BatchNorm2d(dim), Excitation(dim))
        self.up, self.response = nn.Linear(dim, 4 * dim), ResponseNorm(4 * dim)
        self.down, self.norm = nn.Linear(4 * dim, dim, bias=False), nn.BatchNorm2d(dim)
        self.scale = nn.Parameter(torch.linspace(0.1, 0.5, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.response(F.gelu(self.up(self.mixer(x).permute(0, 2, 3, 1))))
        y = self.norm(self.down(y).permute(0, 3, 1, 2))
        out: Tensor = x + self.scale[:, None, None] * y
        return out
