"""The models of ``effc bench`` as targets on the command line: ``effc explain effc.bench.zoo:resnet50``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from effc.bench import models


def __getattr__(name: str) -> Callable[[], tuple[nn.Module, tuple[Any, ...]]]:
    """A function that makes the model of that name, at its published size, and inputs."""
    if name not in models.ENTRIES | models.SIZES:
        raise AttributeError(f"no model '{name}'; there are: {', '.join(models.ENTRIES | models.SIZES)}")

    def make() -> tuple[nn.Module, tuple[Any, ...]]:
        case = models.build(name, small=False)
        return case.module, case.inputs(0, 0)

    return make
