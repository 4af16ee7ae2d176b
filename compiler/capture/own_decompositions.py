"""Decompositions that effc adds to Inductor's: ops that it lacks, or takes apart otherwise than ATen computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from effc.compiler.capture.sampling import grid_sampler

_aten = torch.ops.aten


def own_decompositions() -> dict[Any, Callable[..., Any]]:
    return {
        _aten.grid_sampler_2d.default: grid_sampler,
        _aten.grid_sampler_3d.default: grid_sampler,
    }
