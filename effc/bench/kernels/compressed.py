"""Layers whose weights hold zeros, by the patterns that kernels leave out, and layers as two products.

Eager runs the zeros like other numbers; in place of factors it runs the layer that they stand for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from effc.bench.kernels.kernel import Kernel, layer, normals
from effc.compiler.compress.pruning.prune import prune
from effc.compiler.ir.pattern import Pattern

#: Channels, output channels, side of the image: of MobileNet.
_POINTWISE = ((32, 64, 112), (128, 128, 56), (256, 256, 28), (512, 512, 14), (1024, 1024, 7))
#: Channels, side, stride: of ResNet-50.
_WINDOWS = ((64, 56, 1), (256, 14, 1), (128, 56, 2))
#: K, N of one row: of SmolLM2-135M, and beyond the caches.
_ROW = ((576, 1536), (1536, 576), (4096, 4096))
#: K, N: of BERT-base.
_MATRICES = ((768, 768), (768, 3072), (3072, 768))
#: A rank as a share of the lesser side.
_RATIO = 0.25


def kernels() -> Iterator[Kernel]:
    for pattern, share in (("unstructured", 0.8), ("unstructured", 0.9), ("1x16", 0.5), ("1x16", 0.8)):
        for channels, out, side in _POINTWISE:
            dense = layer("conv1x1", partial(nn.Conv2d, channels, out, 1), (1, channels, side, side))
            yield _sparse(dense, pattern, share, channels * out * side * side)
    for pattern, share in (("16x1", 0.8), ("unstructured", 0.9)):
        for channels, side, stride in _WINDOWS:
            family = "conv3x3" + (f" stride {stride}" if stride > 1 else "")
            make = partial(nn.Conv2d, channels, channels, 3, stride, 1)
            products = channels * channels * 9 * (side // stride) ** 2
            yield _sparse(layer(family, make, (1, channels, side, side)), pattern, share, products)
    for k, n in _ROW:
        yield _sparse(Kernel(f"linear M=1/{k}x{n}", partial(nn.Linear, k, n), normals((1, k))), "2:4", 0.5, k * n)
    for m in (1, 128):
        for k, n in _MATRICES:
            dense = Kernel(f"linear M={m}/{k}x{n}", partial(nn.Linear, k, n), normals((m, k)))
            name = f"low rank {_RATIO:.0%} {dense.name}"
            yield Kernel(name, partial(_factors, k, n), dense.inputs, dense=dense)


def _sparse(dense: Kernel, pattern: str, share: float, products: int) -> Kernel:
    """``products``: of the dense layer; those with a weight of 0 need not be done."""
    return replace(
        dense,
        name=f"{pattern} {dense.name}" if ":" in pattern else f"{pattern} {share:.0%} {dense.name}",
        make=partial(_pruned, dense, pattern, share),
        flops=2 * round(products * (1 - share)),
        passes=(("sparsity", ()),),
    )


def _pruned(dense: Kernel, pattern: str, share: float) -> nn.Module:
    module = dense.make()
    weight = module.get_parameter("weight")
    with torch.no_grad():
        weight.copy_(prune({"weight": weight}, Pattern.parse(pattern), share)["weight"])
    return module


def _factors(k: int, n: int) -> nn.Module:
    rank = round(_RATIO * min(k, n))
    return nn.Sequential(nn.Linear(k, rank, bias=False), nn.Linear(rank, n))
