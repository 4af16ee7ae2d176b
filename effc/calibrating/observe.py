"""Statistics of the activations that meet a model's weights, taken while the model runs in eager."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from effc.calibrating.windows import CONVOLUTIONS, Convolution, sampled, spread
from effc.compiler.ir.calibration import Floats, Statistics

#: Functions that multiply an activation by a weight -> (position of the activation, of the weight, the activation's channel
#: dimension, the weight's dimension of output channels).
CONTRACTIONS: Mapping[Any, tuple[int, int, int, int]] = {
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
    activation; ``rows``: how many rows of activations are kept for each; ``second_moments``: whether theirs are.
    """

    def __init__(self, names: Mapping[int, list[str]], rows: int, second_moments: bool) -> None:
        super().__init__()
        self.names, self.rows, self.second_moments = names, rows, second_moments
        self.weights: dict[int, tuple[Floats, Floats]] = {}
        self.seen: dict[int, _Rows] = {}
        self.windows: dict[int, torch.Tensor] = {}
        self.latest = _Latest()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        place = CONTRACTIONS.get(func)
        if place is not None:
            self._see(func, args, kwargs)
        return func(*args, **kwargs)

    def statistics(self) -> dict[str, Statistics]:
        """By parameter name."""
        arrays = {id(rows): rows.arrays() for rows in self.seen.values()}
        windows = {key: _floats(sample) for key, sample in self.windows.items()}
        return {
            name: Statistics(*arrays[id(rows)], *self.weights[key], windows=windows.get(key))
            for key, rows in self.seen.items()
            for name in self.names[key]
        }

    def first_with_nan(self) -> str | None:
        """The name of the first weight, in the order of the calls, whose activation has held NaN."""
        return next((self.names[key][0] for key, rows in self.seen.items() if bool(rows.least.isnan().any())), None)

    def _see(self, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        activation, weight, dim, out = CONTRACTIONS[func]
        x = args[activation] if len(args) > activation else kwargs.get("input")
        w = args[weight] if len(args) > weight else kwargs.get("weight")
        if not isinstance(x, torch.Tensor) or not isinstance(w, torch.Tensor) or id(w) not in self.names:
            return
        if not x.is_floating_point() or x.numel() == 0:
            return
        if id(w) not in self.weights:
            matrix = w.detach().movedim(out, 0).reshape(w.shape[out], -1).float()
            self.weights[id(w)] = (_floats(matrix.abs().amax(1)), _floats(matrix.square().mean(1)))
        before = self.seen.get(id(w))
        found = self.latest.after(before, x, dim)
        if found is None:
            rows = x.detach().movedim(dim, -1).reshape(-1, x.shape[dim]).float()
            found = _Rows.of(rows, self.second_moments) if before is None else before.and_of(rows, self.rows)
            found = found.thinned(self.rows)
            self.latest.keep(before, found)
        self.seen[id(w)] = found
        if func in CONVOLUTIONS and w[0, 0].numel() > 1:
            more, known = sampled(Convolution.of(x, w, args, kwargs), x, self.rows), self.windows.get(id(w))
            self.windows[id(w)] = more if known is None else spread(torch.cat([known, more]), self.rows)


class _Latest:
    """What became of the statistics of weights that met the latest activation: those with the same ones before share them after, so
    query, key and value have one copy, made once.
    """

    def __init__(self) -> None:
        self.activation: tuple[torch.Tensor, int, int] | None = None
        self.made: list[tuple[_Rows | None, _Rows]] = []

    def after(self, before: _Rows | None, x: torch.Tensor, dim: int) -> _Rows | None:
        """Of a weight with the statistics ``before``; None where it is the first to meet ``x``, as it is now."""
        version = -1 if x.is_inference() else x._version
        same = self.activation
        if same is None or same[0] is not x or same[1:] != (version, dim) or version < 0:
            self.activation, self.made = (x, version, dim), []
        return next((after for known, after in self.made if known is before), None)

    def keep(self, before: _Rows | None, after: _Rows) -> None:
        self.made.append((before, after))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Statistics of rows of activations; sums, where `Statistics` has means. Immutable, because weights share them."""

    least: torch.Tensor
    greatest: torch.Tensor
    sums: torch.Tensor
    squares: torch.Tensor
    products: torch.Tensor | None
    sample: torch.Tensor
    rows: int

    @staticmethod
    def of(rows: torch.Tensor, second_moments: bool) -> _Rows:
        least, greatest = rows.aminmax(dim=0)
        products = rows.T @ rows if second_moments else None
        double = rows.double()
        return _Rows(least, greatest, double.sum(0), double.square().sum(0), products, rows, len(rows))

    def and_of(self, rows: torch.Tensor, limit: int) -> _Rows:
        products = None if self.products is None else torch.addmm(self.products, rows.T, rows)
        double = rows.double()
        return _Rows(
            torch.minimum(self.least, rows.amin(0)),
            torch.maximum(self.greatest, rows.amax(0)),
            self.sums + double.sum(0),
            self.squares + double.square().sum(0),
            products,
            torch.cat([self.sample, rows[:: max(1, len(rows) // limit)]]),
            self.rows + len(rows),
        )

    def thinned(self, limit: int) -> _Rows:
        """With at most ``limit`` rows in the sample."""
        return replace(self, sample=spread(self.sample, limit))

    def arrays(self) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats | None, int]:
        """The first fields of `Statistics`."""
        moment = None if self.products is None else _floats(self.products / self.rows)
        mean, mean_square = (_floats((sums / self.rows).float()) for sums in (self.sums, self.squares))
        return _floats(self.least), _floats(self.greatest), mean, mean_square, _floats(self.sample), moment, self.rows


def _floats(tensor: torch.Tensor) -> Floats:
    return np.array(tensor.detach().numpy(), dtype=np.float32)
