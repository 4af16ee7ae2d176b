"""Rewrites that change a model's function within a budget: their options, and the registry that names them.

Such a rewrite is one frozen dataclass; **its fields are its options**, of ``passes={"name": {...}}``, and it refuses wrong ones when it is
made. What it does to a captured graph is in `compiler.compress`, for it needs the weights.
"""

from __future__ import annotations

import fnmatch
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

from effc.compiler.ir.calibration import Calibration, Statistics
from effc.compiler.ir.errors import EffcError, OptionError


@dataclass(frozen=True, kw_only=True)
class Compression(ABC):  # what it does depends on torch, which this package does without
    """Options of a rewrite; OptionError at construction where they do not fit together.

    ``calibration``: what ``effc.calibrate`` returned, for what looks at activations. ``skip``: names of weights that stay, with ``*`` and
    ``?``.
    """

    name: ClassVar[str]
    calibration: Calibration | None = None
    skip: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.skip, str) or not all(isinstance(s, str) for s in self.skip):
            raise self.wrong("skip", "a list of names")
        object.__setattr__(self, "skip", tuple(self.skip))
        if self.calibration is not None and not isinstance(self.calibration, Calibration):
            raise self.wrong("calibration", "what effc.calibrate returned")

    def skips(self, weight: str) -> bool:
        """Whether the weight of this name stays as it is."""
        return any(fnmatch.fnmatchcase(weight, pattern) for pattern in self.skip)

    def statistics(self, weight: str) -> Statistics | None:
        """Of what meets the weight of this name, where the calibration has seen it."""
        return None if self.calibration is None else self.calibration.sites.get(weight)

    def narrowed(self, narrow: Callable[[Calibration], Calibration]) -> Self:
        """The same options for a model that has lost channels: of its calibration too."""
        return self if self.calibration is None else replace(self, calibration=narrow(self.calibration))

    def wrong(self, option: str, expected: str) -> OptionError:
        """The error of an option whose value is none that is ``expected``."""
        return self.refused(f"'{option}' is {getattr(self, option)!r}: expected {expected}")

    def refused(self, why: Any) -> OptionError:
        """The error of options that do not fit."""
        return OptionError(f"option 'passes': {self.name}: {why}")


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
