"""How much of an error of a layer's output the model's output shows: squares of gradients, taken while the model runs in eager.

For an error ``e`` of a layer's output the model is off by ``½ E (g · e)²``, to second order, with ``g`` the gradient of the logarithm of a
probability that the model gives to what is drawn by it (Fisher's information), or of the output times random signs (the squares of the
Jacobian: Hutchinson's estimate). Of ``g gᵀ`` the diagonal is kept. What a layer does at every pixel is off at every pixel: squares are
summed over its rows, so that layers of large images count by them, and taken for a row of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from effc.calibrating.effects import Effects
from effc.calibrating.observe import CONTRACTIONS
from effc.compiler.ir.calibration import Statistics
from effc.compiler.ir.errors import InputError
from effc.runtime.structure import flatten

#: What the output is taken for: logits of classes along the last dimension, or numbers.
Probe = Literal["logits", "values"]


class GradientObserver:
    """Sums what gradients say of contractions with the parameters ``names`` (parameter object -> its names): squares of those of outputs,
    and `Effects` of inputs.
    """

    def __init__(self, names: Mapping[int, list[str]], probe: Probe) -> None:
        self.names, self.probe = names, probe
        self.squares: dict[int, Tensor] = {}
        self.effects = Effects()
        self.rows = 0
        self._draws = torch.Generator().manual_seed(0)

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Run ``module`` once, forwards and backwards; gradients of its parameters stay as they are. InputError: outputs without
        gradients, without floats, or without classes where they are to be logits; tensors of inference mode.
        """
        if any(t.is_inference() for t in (*module.parameters(), *module.buffers())):
            raise InputError(
                "the model's weights were made under torch.inference_mode(), where nothing takes gradients, which sensitivity is measured "
                "by: make or load the model outside of it, or leave 'sensitivity' out"
            )
        origin = torch.zeros((), requires_grad=True)
        with torch.enable_grad(), _Tap(self, origin):
            output = module(*args, **kwargs)
        target = next((t for t in flatten(output)[1] if t.is_floating_point()), None)
        if target is None or not target.requires_grad:
            raise InputError(
                "the model's outputs carry no gradients, which sensitivity is measured by: take detach() and no_grad() out of its forward, "
                "or leave 'sensitivity' out"
            )
        if self.probe == "logits" and target.dim() == 0:
            raise InputError("the model's output is one number, not logits of classes: give sensitivity='values'")
        self.effects.begin(target)
        torch.autograd.grad(self._scalar(target.float()), origin, allow_unused=True)

    def added_to(self, sites: Mapping[str, Statistics]) -> dict[str, Statistics]:
        """``sites``, by parameter name, with ``sensitivity``, and ``effects`` where samples can be told apart."""
        found, known = dict(sites), self.effects.keys()
        for key, squares in self.squares.items():
            names = [name for name in self.names[key] if name in sites]
            if names:
                mean = (squares / self.rows).float().numpy()
                effects = self.effects.of(key, sites[names[0]].mean) if key in known else None
                found |= {name: replace(sites[name], sensitivity=mean, effects=effects) for name in names}
        return found

    def _scalar(self, output: Tensor) -> Tensor:
        rows = output.reshape(-1, output.shape[-1] if output.dim() else 1)
        self.rows += len(rows)
        if self.probe == "values":
            signs = torch.randint(0, 2, output.shape, generator=self._draws) * 2 - 1
            return (output * signs).sum()
        drawn = torch.multinomial(rows.detach().softmax(1), 1, generator=self._draws)
        return rows.log_softmax(1).gather(1, drawn).sum()


class _Tap(TorchFunctionMode):
    """Adds ``origin``, a zero, to what contractions meet and give, so that the path of gradients to it leads through all of them."""

    def __init__(self, observer: GradientObserver, origin: Tensor) -> None:
        super().__init__()
        self.observer, self.origin = observer, origin

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        place = CONTRACTIONS.get(func)
        weight = None if place is None else args[place[1]] if len(args) > place[1] else kwargs.get("weight")
        if place is None or id(weight) not in self.observer.names:
            return func(*args, **kwargs)
        number, _, dim, _ = place
        if len(args) > number:
            args = (*args[:number], self._met(args[number], id(weight), dim), *args[number + 1 :])
        elif "input" in kwargs:
            kwargs["input"] = self._met(kwargs["input"], id(weight), dim)
        return self._given(func(*args, **kwargs), id(weight), dim)

    def _met(self, x: Any, key: int, dim: int) -> Any:
        """A copy of the activation ``x`` for the weight ``key`` alone, whose gradient is seen."""
        if not _is_seen(x):
            return x
        tapped = x + self.origin.to(x.dtype)
        rows, effects = tapped.detach().movedim(dim, -1), self.observer.effects
        tapped.register_hook(lambda gradient: effects.add(key, rows, gradient.movedim(dim, -1)))
        return tapped

    def _given(self, found: Any, key: int, dim: int) -> Any:
        """A copy of what the weight ``key`` gave, whose gradient is seen."""
        if not _is_seen(found):
            return found
        tapped = found + self.origin.to(found.dtype)
        squares = self.observer.squares.setdefault(key, torch.zeros(found.shape[dim], dtype=torch.float64))

        def add(gradient: Tensor) -> None:
            squares.add_(gradient.detach().movedim(dim, -1).reshape(-1, len(squares)).double().square().sum(0))

        tapped.register_hook(add)
        return tapped


def _is_seen(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0
