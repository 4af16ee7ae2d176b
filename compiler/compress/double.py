"""Double quantization (Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023, section 3): the scales of small
groups are themselves stored in 8 bits. Here they are int8 about their mean, with a float32 scale for each block of 256.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from effc.compiler.compress.grid import Grid
from effc.compiler.compress.quantized import ScaleCodes
from effc.compiler.compress.rounding import LEAST_SCALE

#: QLoRA's: 32/64 bits a weight for scales of groups of 64 become 8/64 + 32/(64 * 256).
BLOCK = 256
_MOST = 127


def double_quantized(grid: Grid) -> Grid:
    """The same with scales that int8 codes give exactly (its ``scale_codes``).

    A scale whose nearest code gives none above 0, a far smaller one than its block's, takes the next that does; so scales stay positive.
    Zero points are kept: the range moves with the scale.
    """
    flat = grid.scales.flatten()
    mean = flat.double().mean().float()
    blocks = F.pad(flat - mean, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    block_scales = (blocks.abs().amax(1) / _MOST).clamp(min=LEAST_SCALE)
    codes = (blocks / block_scales[:, None]).round().clamp(-_MOST, _MOST)
    for _ in range(2):  # rounding moves a code by half, and `mean + code * scale` rounds once more
        codes += mean + codes * block_scales[:, None] < LEAST_SCALE
    kept = codes.flatten()[: len(flat)].reshape(grid.scales.shape).to(torch.int8)
    stored = ScaleCodes(kept, block_scales, mean, BLOCK)
    return replace(grid, scales=stored.scales(), scale_codes=stored)
