"""Functions of single elements, and chains of them: in the caches, and beyond them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from effc.bench.kernels.kernel import Kernel, function

#: With the number of inputs.
_FUNCTIONS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "add": (torch.add, 2),
    "relu": (torch.relu, 1),
    "exp": (torch.exp, 1),
    "tanh": (torch.tanh, 1),
    "gelu": (F.gelu, 1),
    "silu·mul": (lambda a, b: F.silu(a) * b, 2),
    "chain of 6": (lambda a, b: torch.sigmoid(a * b + 1.5).clamp(0.1, 0.9) - a.abs(), 2),
}


def kernels() -> Iterator[Kernel]:
    for family, (f, inputs) in _FUNCTIONS.items():
        for count in (1 << 17, 1 << 24):
            yield function(family, f, *[(count,)] * inputs)
    yield function("add", torch.add, (16,), (16,))  # of nothing: what a call costs
    yield function("rows plus a bias", lambda x, bias: x + bias, (16384, 1024), (1024,))
