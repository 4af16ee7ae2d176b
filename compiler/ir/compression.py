"""Rewrites that change a model's function within a budget: their options, and the registry that names them.

Such a rewrite is one frozen dataclass; **its fields are its options**, of ``passes={"name": {...}}``, and it refuses wrong ones when it is
made. What it does to a captured graph is in `compiler.compress`, for it needs the weights.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from effc.compiler.ir.errors import EffcError


@dataclass(frozen=True)
class Compression(ABC):  # what it does depends on torch, which this package does without
    """Options of a rewrite; OptionError at construction where they do not fit together."""

    name: ClassVar[str]


_REGISTRY: dict[str, type[Compression]] = {}
CompressionClass = TypeVar("CompressionClass", bound=type[Compression])


def compresses(cls: CompressionClass) -> CompressionClass:
    """Class decorator: makes the rewrite known under its ``name``. Two of one name are a mistake."""
    known = _REGISTRY.setdefault(cls.name, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise EffcError(f"two rewrites are named '{cls.name}': {known.__module__} and {cls.__module__}; rename one")
    return cls


def compressions() -> Mapping[str, type[Compression]]:
    """Those that imported modules have registered, by name; ``effc.passes.registry()`` imports them all."""
    return dict(sorted(_REGISTRY.items()))
