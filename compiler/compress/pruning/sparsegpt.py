"""SparseGPT (Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023): channel after
channel loses elements, and the channels still to come make up for them.

Which elements go is decided for some channels at a time, when they are reached: those whose loss costs the output least once the rest
has made up for it, ``w² / [H⁻¹]`` (Hassibi and Stork's saliency); of a block the sum of its elements'.
"""

from __future__ import annotations

import torch
from torch import Tensor

from effc.compiler.compress.compensation import BLOCK, Compensation
from effc.compiler.compress.pruning.masks import kept
from effc.compiler.ir.pattern import Pattern


def sparsegpt(weight: Tensor, pattern: Pattern, sparsity: float, compensation: Compensation) -> Tensor:
    """``weight``, float32 ``[out, positions, channels]``, with ``sparsity`` of it zeros by ``pattern`` and the rest changed.
    ``compensation``: of what it meets, its channels as they are. Elements that meet nothing but 0 go first, and none makes up for them.
    """
    out, positions, channels = weight.shape
    rest = weight.reshape(-1, channels).T.contiguous()
    along = pattern.m if pattern.kind == "n:m" else pattern.columns
    block = max(along, BLOCK - BLOCK % along)  # whole groups, so that a mask sees them as they are when it is chosen
    step = along if pattern.kind == "n:m" else block
    diagonal = compensation.factor.diagonal().masked_fill(compensation.dead, torch.inf)
    mask, asked, gone = torch.empty(rest.shape, dtype=torch.bool), sparsity * len(rest[0]), 0

    def settled(i: int) -> Tensor:
        nonlocal gone
        if i % step == 0:
            stop = min(i + step, channels)
            scores = _saliency(rest[i:stop], diagonal[i:stop])
            # So many that what is pruned up to here is the share asked, though none of the steps can be cut to it.
            share = min(max((asked * stop - gone) / scores.numel(), 0.0), 1.0)
            mask[i:stop] = kept(scores.T.reshape(out, positions, -1), pattern, share).reshape(-1, stop - i).T
            gone += int(mask[i:stop].logical_not().sum())
        return rest[i] * mask[i]

    return compensation.sweep(rest, settled, block).T.reshape(weight.shape)


def _saliency(rest: Tensor, diagonal: Tensor) -> Tensor:
    """What the loss of each of ``rest`` ``[channels, rows]`` costs, as a share of the largest. ``diagonal``: of the factor, infinite
    where it costs nothing.
    """
    ratio = (rest / diagonal[:, None]).abs()
    return (ratio / ratio.max().clamp(min=torch.finfo(torch.float32).tiny)).square()
