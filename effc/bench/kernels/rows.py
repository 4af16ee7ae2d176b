"""Softmax, norms and reductions: over rows, columns and everything.

The largest read 128 MiB: of 64, a third-level cache of 32 keeps so much from call to call that they seem to go beyond the bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from effc.bench.kernels.kernel import Kernel, function, layer

_SMALL, _SHORT, _LONG, _LARGE = (128, 768), (1536, 128), (128, 50257), (32768, 1024)

_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(-1),
    "max": lambda x: x.amax(-1),
    "variance": lambda x: x.var(-1),
    "argmax": lambda x: x.argmax(-1),
    "column sum": lambda x: x.sum(0),
    "column max": lambda x: x.amax(0),
}


def kernels() -> Iterator[Kernel]:
    for shape in (_SMALL, _SHORT, _LONG, _LARGE):
        yield layer("softmax", partial(nn.Softmax, -1), shape)
    for shape in (_SMALL, _SHORT, _LARGE):
        yield layer("layer norm", partial(nn.LayerNorm, shape[-1]), shape)
        yield layer("rms norm", partial(nn.RMSNorm, shape[-1]), shape)
    for image in ((1, 128, 32, 32), (16, 128, 96, 96)):
        yield layer("group norm", partial(nn.GroupNorm, 32, 128), image)
        yield layer("batch norm", partial(nn.BatchNorm2d, 128), image)
    for family, reduce in _REDUCTIONS.items():
        for shape in (_SMALL, _LARGE):
            yield function(family, reduce, shape)
    for count in (1 << 17, 1 << 25):
        yield function("sum of all", torch.sum, (count,))
        yield function("max of all", torch.amax, (count,))
