"""Statistics of the activations that meet a model's weights, taken while the model runs in eager."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from effc.compiler.ir.calibration import Floats, Statistics

#: Functions that multiply an activation by a weight -> (position of the activation, of the weight, the activation's channel
#: dimension, the weight's dimension of output channels).
_CONTRACTIONS: Mapping[Any, tuple[int, int, int, int]] = {
    F.linear: (0, 1, -1, 0),
    torch.matmul: (0, 1, -1, -1),
    torch.mm: (0, 1, -1, -1),
    torch.bmm: (0, 1, -1, -1),
    torch.addmm: (1, 2, -1, -1),
    torch.Tensor.matmul: (0, 1, -1, -1),
    torch.Tensor.__matmul__: (0, 1, -1, -1),
    torch.conv1d: (0, 1, -2, 0),
    torch.conv2d: (0, 1, -3, 0),
    torch.conv3d: (0, 1, -4, 0),
    torch.conv_transpose1d: (0, 1, -2, 1),
    torch.conv_transpose2d: (0, 1, -3, 1),
    torch.conv_transpose3d: (0, 1, -4, 1),
}


class Observer(TorchFunctionMode):
    """Active around calls of a model: gathers `Statistics` for each of ``names`` (parameter object -> its names) that meets an
    activation; ``rows``: how many rows of activations are kept for each.
    """

    def __init__(self, names: Mapping[int, list[str]], rows: int) -> None:
        super().__init__()
        self.names, self.rows = names, rows
        self.found: dict[int, _Running] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        place = _CONTRACTIONS.get(func)
        if place is not None:
            self._see(*place, args, kwargs)
        return func(*args, **kwargs)

    def statistics(self) -> dict[str, Statistics]:
        """By parameter name."""
        return {name: seen.statistics() for key, seen in self.found.items() for name in self.names[key]}

    def _see(self, activation: int, weight: int, dim: int, out: int, args: Any, kwargs: Any) -> None:
        x = args[activation] if len(args) > activation else kwargs.get("input")
        w = args[weight] if len(args) > weight else kwargs.get("weight")
        if not isinstance(x, torch.Tensor) or not isinstance(w, torch.Tensor) or id(w) not in self.names:
            return
        if not x.is_floating_point() or x.numel() == 0:
            return
        rows = x.detach().movedim(dim, -1).reshape(-1, x.shape[dim]).float()
        if id(w) not in self.found:
            self.found[id(w)] = _Running(w.detach().movedim(out, 0).reshape(w.shape[out], -1).float(), self.rows)
        self.found[id(w)].add(rows)


class _Running:
    """Statistics of one weight so far; ``weight``: [output channels, the rest]."""

    def __init__(self, weight: torch.Tensor, limit: int) -> None:
        self.limit = limit
        self.weight = (_floats(weight.abs().amax(1)), _floats(weight.square().mean(1)))
        self.absmax = torch.zeros(0)
        self.squares = torch.zeros(0, dtype=torch.float64)
        self.sample = torch.zeros(0, 0)
        self.rows = 0

    def add(self, rows: torch.Tensor) -> None:
        absmax, squares = rows.abs().amax(0), rows.double().square().sum(0)
        fresh = self.rows == 0
        self.absmax = absmax if fresh else torch.maximum(self.absmax, absmax)
        self.squares = squares if fresh else self.squares + squares
        kept = rows if fresh else torch.cat([self.sample, rows[:: max(1, len(rows) // self.limit)]])
        self.sample = kept[torch.linspace(0, len(kept) - 1, min(len(kept), self.limit)).long()].clone()
        self.rows += len(rows)

    def statistics(self) -> Statistics:
        mean = (self.squares / self.rows).float()
        return Statistics(_floats(self.absmax), _floats(mean), _floats(self.sample), self.rows, *self.weight)


def _floats(tensor: torch.Tensor) -> Floats:
    return np.array(tensor.detach().numpy(), dtype=np.float32)
