"""Plans in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import effc
from effc.planning.plans import Plan


def kept_in_a_file(plan: Plan, model: nn.Module, x: Tensor, path: Path) -> Tensor:
    """What ``model`` gives by ``plan`` as read again, which is equal, and gives the same."""
    plan.save(path)
    again = effc.Plan.load(path)
    assert again == plan
    assert hash(again) == hash(plan)
    found = []
    for options in ({"plan": str(path)}, {"plan": plan}):
        torch._dynamo.reset()
        with torch.no_grad():
            found.append(_compiled(model, options)(x))
    assert torch.equal(*found)
    return found[0]


def _compiled(model: nn.Module, options: dict[str, Any]) -> Callable[..., Tensor]:
    return torch.compile(model, backend="effc", options=options)
