"""What `plans.py` plans: models with batches to plan by, batches held out, and, where there are real weights, a task.

Real weights: ``language`` (SmolLM2-135M), ``embeddings`` (MiniLM-L6) and ``images`` (a residual network trained here), of
`accuracy_tasks.py`. Every other name is a model of ``effc bench``, with random weights: its times are those of trained ones, its errors
are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accuracy_tasks import TASKS, Task
from torch import nn
from torch.utils._pytree import tree_map

from effc.bench.models import build
from effc.calibrating.calibration import call_of, cloned
from effc.runtime.structure import flatten, unflatten

#: Batches that are planned by, of models without a task, and held out.
_PLANNED, _HELD_OUT = 8, 4


@dataclass(frozen=True)
class Subject:
    """``planned``, ``held_out``: batches of the same source. ``task``: which says how good a model is, or None."""

    name: str
    model: nn.Module
    planned: list[Any]
    held_out: list[Any]
    task: Task | None

    @torch.no_grad()
    def outputs(self, call: Callable[..., Any]) -> list[Any]:
        """For the batches held out."""
        return [call(*args, **kwargs) for args, kwargs in map(call_of, self.held_out)]

    def in_one_shape(self) -> Subject:
        """With all batches in the shapes of the first, for what takes these alone: cut at the end, or filled with zeros there, which are
        padding where a mask is one of the tensors. Without the task.
        """
        first = self.planned[0]
        planned, held_out = ([tree_map(_fitted, b, first) for b in found] for found in (self.planned, self.held_out))
        return Subject(self.name, self.model, planned, held_out, None)

    def positional(self) -> nn.Module:
        """The model as a function of the tensors of a batch, in order."""
        return _Positional(self.model, self.planned[0]).eval()

    def loss(self, call: Callable[..., Any], exact: torch.Tensor | None) -> float | None:
        """What the task loses where ``call`` runs in the model's place; ``exact``: the cases of the model itself."""
        if self.task is None or exact is None:
            return None
        self.task.model = _Module(call)
        try:
            return self.task.loss(exact, self.task.cases())
        finally:
            self.task.model = self.model


def subject(name: str) -> Subject:
    """KeyError: no model or task has this name."""
    if name in TASKS:
        task = TASKS[name](0)
        planned = [*task.calibration, *task.held_out[:-_HELD_OUT]]
        return Subject(name, task.model, planned, task.held_out[-_HELD_OUT:], task)
    case = build(name, small=False)
    planned, held_out = (
        [cloned(case.inputs(seed, 0)) for seed in range(first, first + count)]
        for first, count in ((1, _PLANNED), (101, _HELD_OUT))
    )
    return Subject(name, case.module.eval(), planned, held_out, None)


def _fitted(value: Any, like: Any) -> Any:
    """A tensor in the shape of another; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    part = tuple(slice(min(a, b)) for a, b in zip(value.shape, like.shape, strict=True))
    found = value.new_zeros(like.shape)
    found[part] = value[part]
    return found


class _Positional(nn.Module):
    """Puts tensors into the places that those of ``batch`` have among the model's arguments."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        super().__init__()
        self.model = model
        self._tree = flatten(call_of(batch))[0]

    def forward(self, *tensors: torch.Tensor) -> Any:
        args, kwargs = unflatten(self._tree, list(tensors))
        return self.model(*args, **kwargs)


class _Module(nn.Module):
    """A callable where a module is asked for."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self._call = call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)
