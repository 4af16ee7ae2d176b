"""What a model of the zoo is, and how its random weights are kept at a sane scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """A model at one size, in ``eval`` mode, float32.

    ``inputs(seed, step)``: fresh random positional arguments; ``step`` > 0 gives another size of the dynamic
    dimension (batch, length or image), step 0 the nominal one. ``nested tuples of tensors`` are allowed; some models
    write into their caches.
    """

    name: str
    module: nn.Module
    inputs: Callable[[int, int], Inputs]


#: ``build(small)`` makes the ``Case``; ``small`` is the size for the test suite (seconds), else the published
#: architecture.
Builder = Callable[[bool], Case]


@dataclass(frozen=True)
class Entry:
    """A named model. ``recurrent``: LSTM and GRU, whose recurrence effc leaves to ATen so far."""

    name: str
    build: Builder
    recurrent: bool = False


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal float32 of ``shape``."""
    return torch.randn(*shape, generator=generator(seed))


def tokens(seed: int, vocabulary: int, *shape: int) -> torch.Tensor:
    """Random int64 token numbers below ``vocabulary``."""
    return torch.randint(0, vocabulary, shape, generator=generator(seed))


def settle(module: nn.Module, inputs: Inputs | None = None, seed: int = 1) -> nn.Module:
    """Random, non-trivial affine parameters and statistics for every norm; then ``eval``.

    Batch norms take the statistics that ``inputs`` really have, moved by up to 20 %: so activations stay O(1) through
    a deep network, and no statistic is 0 or 1, which a wrong kernel could hide behind.
    """
    g = generator(seed)
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for m in module.modules():
            if (
                isinstance(m, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
                or type(m).__name__ == "RMSNorm"
            ):
                _randomize(m.get_parameter("weight"), g, 0.75, 1.25)
                bias = getattr(m, "bias", None)
                if bias is not None:
                    _randomize(bias, g, -0.2, 0.2)
        if norms and inputs is not None:
            momenta = [m.momentum for m in norms]
            for m in norms:
                m.momentum = 1.0
            module.train()(*inputs)
            for m, momentum in zip(norms, momenta, strict=True):
                m.momentum = momentum
        for m in norms:
            assert m.running_mean is not None
            assert m.running_var is not None
            m.running_mean.add_(m.running_var.sqrt() * (torch.rand(m.running_mean.shape, generator=g) - 0.5) * 0.4)
            m.running_var.mul_(torch.rand(m.running_var.shape, generator=g) * 0.4 + 0.8)
    return module.eval()


def _randomize(parameter: torch.Tensor, g: torch.Generator, low: float, high: float) -> None:
    parameter.copy_(torch.rand(parameter.shape, generator=g) * (high - low) + low)
