"""Residual blocks of every kind that block fusion is about, each alone, at any width and resolution.

>>> case = build_block("convnext", width=96, side=56)
>>> case.module(*case.inputs(seed=0, step=0))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convfirst import ConvFirstBlock
from .entry import Case, Inputs, normal, settle
from .reparameterized import UniRepLKBlock
from .vision import BasicBlock, Bottleneck, InvertedResidual
from .vision_transformers import ConvNextBlock


class InceptionNextBlock(nn.Module):
    """Depthwise 3x3, 1x11 and 11x1 of an eighth of the channels each, the rest untouched; batch norm, two 1x1, layer scale; and a shortcut
    (Yu et al., 2023).
    """

    def __init__(self, dim: int, band: int = 11) -> None:
        super().__init__()
        part = max(1, dim // 8)
        self.parts = [dim - 3 * part, part, part, part]
        self.square = nn.Conv2d(part, part, 3, padding=1, groups=part)
        self.wide = nn.Conv2d(part, part, (1, band), padding=(0, band // 2), groups=part)
        self.tall = nn.Conv2d(part, part, (band, 1), padding=(band // 2, 0), groups=part)
        self.norm = nn.BatchNorm2d(dim)
        self.mlp = nn.Sequential(nn.Conv2d(dim, 4 * dim, 1), nn.GELU(), nn.Conv2d(4 * dim, dim, 1))
        self.scale = nn.Parameter(torch.linspace(0.1, 0.5, dim))

    def forward(self, x: Tensor) -> Tensor:
        rest, square, wide, tall = x.split(self.parts, 1)
        mixed = torch.cat([rest, self.square(square), self.wide(wide), self.tall(tall)], 1)
        out: Tensor = x + self.mlp(self.norm(mixed)) * self.scale[:, None, None]
        return out


class Mlp(nn.Module):
    """Layer norm, linear, GELU, linear, of ``[batch, tokens, dim]``; and a shortcut."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return out


class GatedMlp(nn.Module):
    """RMS norm, then a linear times the SiLU of another, and a linear back (Shazeer, 2020: SwiGLU); and a shortcut."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = 8 * dim // 3
        self.norm = nn.RMSNorm(dim)
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class AttentionTail(nn.Module):
    """What follows the attention in a pre-norm block: the output projection and its shortcut, then `Mlp`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out, self.mlp = nn.Linear(dim, dim), Mlp(dim)

    def forward(self, attended: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x + self.out(attended))
        return out


@dataclass(frozen=True)
class BlockKind:
    """``make(width)`` gives the block. ``inputs``: how many tensors it takes: images ``[batch, width, side, side]`` in channels-last order,
    with ``tokens`` rows ``[batch, side * side, width]``. ``multiple``: of what widths are.
    """

    make: Callable[[int], nn.Module]
    inputs: int = 1
    tokens: bool = False
    multiple: int = 1


BLOCKS: dict[str, BlockKind] = {
    "basic": BlockKind(lambda width: BasicBlock(width, width, 1)),
    "bottleneck": BlockKind(lambda width: Bottleneck(width, width // 4, 1), multiple=4),
    "inverted": BlockKind(lambda width: InvertedResidual(width, width, 3, 1, 6, excite=False)),
    "mbconv": BlockKind(lambda width: InvertedResidual(width, width, 5, 1, 6, excite=True)),
    "convnext": BlockKind(ConvNextBlock),
    "convfirst": BlockKind(ConvFirstBlock, multiple=8),
    "unireplknet": BlockKind(UniRepLKBlock, multiple=4),
    "inceptionnext": BlockKind(InceptionNextBlock, multiple=8),
    "mlp": BlockKind(Mlp, tokens=True),
    "gated_mlp": BlockKind(GatedMlp, tokens=True),
    "attention_tail": BlockKind(AttentionTail, inputs=2, tokens=True),
}


def build_block(name: str, width: int, side: int, batch: int = 1) -> Case:
    """A block whose weights are the same in every process; ``step`` of its inputs adds to the batch. KeyError lists the names; ValueError
    says of what widths are multiples.
    """
    if name not in BLOCKS:
        raise KeyError(f"no block {name!r}; there are: {', '.join(BLOCKS)}")
    kind = BLOCKS[name]
    if width <= 0 or width % kind.multiple:
        raise ValueError(f"a block {name!r} of width {width}: widths are positive multiples of {kind.multiple}")

    def inputs(seed: int, step: int, images: int = batch, side: int = side) -> Inputs:
        shape = (images + step, side * side, width) if kind.tokens else (images + step, width, side, side)
        made = [normal(1000 * i + seed, *shape) for i in range(kind.inputs)]
        return tuple(t if kind.tokens else t.contiguous(memory_format=torch.channels_last) for t in made)

    with torch.random.fork_rng():
        torch.manual_seed(20)
        module = settle(kind.make(width), inputs(0, 0, 4, min(side, 14)))  # statistics for norms need no large image
    return Case(name, module, inputs)
