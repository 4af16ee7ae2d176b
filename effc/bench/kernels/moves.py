"""What moves data and computes little: other layouts, parts joined and padded, tables looked up, pooling."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effc.bench.kernels.kernel import Function, Kernel, function, layer, normals
from effc.bench.models.entry import tokens


def kernels() -> Iterator[Kernel]:
    for side in (1024, 4096):
        yield function("transpose", lambda x: x.t().contiguous(), (side, side))
    yield function("heads to rows", lambda x: x.transpose(1, 2).contiguous(), (8, 16, 2048, 64))
    for image in ((1, 256, 56, 56), (32, 256, 56, 56)):
        yield function("to channels last", lambda x: x.contiguous(memory_format=torch.channels_last), image)
    yield function("halves exchanged", lambda x: torch.cat([-x[..., 64:], x[..., :64]], -1), (32, 4096, 128))
    for rows in (128, 16384):
        yield function("cat of columns", lambda x, y: torch.cat([x, y], -1), (rows, 512), (rows, 512))
    for image in ((1, 64, 56, 56), (8, 64, 224, 224)):
        yield function("pad", lambda x: F.pad(x, (1, 1, 1, 1)), image)
    yield from _lookups()
    for image in ((1, 64, 112, 112), (32, 64, 112, 112)):
        yield layer("max pool 3x3 stride 2", partial(nn.MaxPool2d, 3, 2, 1), image)
        yield layer("average pool 2x2", partial(nn.AvgPool2d, 2), image)
    yield layer("global average pool", partial(nn.AdaptiveAvgPool2d, 1), (1, 2048, 7, 7))
    yield layer("global average pool", partial(nn.AdaptiveAvgPool2d, 1), (32, 512, 56, 56))


def _lookups() -> Iterator[Kernel]:
    for count in (128, 32768):
        yield Kernel(f"embedding/{count} of 30522x768", partial(nn.Embedding, 30522, 768), (_numbers(30522, count),))
    yield Kernel(
        "gather/4096x1024 of 4096x4096",
        partial(Function, lambda x, at: torch.gather(x, 1, at)),
        (*normals((4096, 4096)), _numbers(4096, 4096, 1024)),
    )


def _numbers(below: int, *shape: int) -> partial[Tensor]:
    """Random int64 numbers of ``shape``."""
    return partial(_tokens, below, shape)


def _tokens(below: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return tokens(seed, below, *shape)
