"""What an adapter is, and what several share."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

#: What a model's floats are in; of ``int8`` those that are not quantized.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}

#: Rewrites by name, with their options.
Passes = tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
#: One call of the prepared model on its inputs: the output's tensors, in order.
Call = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Setting:
    """``dtype``: a key of ``DTYPES``; the precision in which the model computes. ``passes``: what effc, and no other, is told to make of
    the subject's weights, by name with its options. ``device``: ``"cpu"`` or ``"cuda"``, on which module and inputs are when they are
    prepared.
    """

    threads: int
    dtype: str
    passes: Passes = ()
    device: str = "cpu"


class System(Protocol):
    """Runs models. Nothing of a rival's is imported before ``prepare``."""

    @property
    def name(self) -> str: ...

    def absent(self, setting: Setting) -> str | None:
        """Why it cannot take part here; None where it can."""

    def prepare(
        self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting, calibration: Sequence[tuple[Any, ...]] = ()
    ) -> Call:
        """Compile ``module`` (float32, ``eval``) as far as the system does before the first call. Gradients are off.
        ``calibration``: inputs from which ranges are taken in ``int8``.
        """


def missing(*packages: str) -> str | None:
    """Which of these distributions is not installed, as a reason."""
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return f"{package} is not installed"
    return None


def cast(module: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[nn.Module, tuple[Any, ...]]:
    """Both with their floating tensors in ``dtype``; the module in place."""
    moved = pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
    return module.to(dtype), moved


def tensors(tree: Any) -> list[Tensor]:
    """The leaves that are tensors, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
