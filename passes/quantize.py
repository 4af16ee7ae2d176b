"""Quantization of weights, and of the activations that meet them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from effc.compiler.ir.calibration import Calibration
from effc.compiler.ir.compression import Compression, compresses
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.quantization import (
    Activations,
    Clipping,
    Grouping,
    Recipe,
    Rounding,
    Scales,
    Scheme,
    Smoothing,
    Weights,
)

#: Elements of the sum that share a scale, where nothing is said: all of a channel for bytes, groups for codes of fewer bits.
_GROUP = 64


@compresses
@dataclass(frozen=True)
class Quantize(Compression):
    """``passes={"quantize": {...}}``: every linear layer, convolution and embedding that the options fit.

    ``weights``, ``group``, ``symmetric``, ``activations``, ``scales``: as in `Scheme`; codes of less than a byte have groups of 64 by
    default, and integers among them zero points. ``smoothing``, ``rounding``, ``clipping``, ``grouping``: as in `Recipe`. ``calibration``:
    what ``effc.calibrate`` returned; the recipes that look at activations need it, and ``activations="tensor"``. ``skip``: names of weights
    that stay, with ``*`` and ``?``. OptionError: a value that is none, or a calibration that is missing.
    """

    name: ClassVar[str] = "quantize"
    weights: Weights = "int8"
    group: int | None = None
    symmetric: bool | None = None
    activations: Activations = "float"
    scales: Scales = "float"
    smoothing: Smoothing = "none"
    rounding: Rounding = "nearest"
    clipping: Clipping = "max"
    grouping: Grouping = "fixed"
    calibration: Calibration | None = None
    skip: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.group is not None and (isinstance(self.group, bool) or not isinstance(self.group, int)):
            raise _wrong("group", self.group, "a whole number of elements, or 0 for all of a channel")
        if self.symmetric is not None and not isinstance(self.symmetric, bool):
            raise _wrong("symmetric", self.symmetric, "True or False")
        if isinstance(self.skip, str) or not all(isinstance(s, str) for s in self.skip):
            raise _wrong("skip", self.skip, "a list of names")
        object.__setattr__(self, "skip", tuple(self.skip))
        if self.calibration is not None and not isinstance(self.calibration, Calibration):
            raise _wrong("calibration", self.calibration, "what effc.calibrate returned")
        try:
            scheme, recipe = self.scheme, self.recipe
        except OptionError as error:
            raise OptionError(f"option 'passes': quantize: {error}") from None
        why = _looks_at_activations(scheme, recipe)
        if self.calibration is None and why:
            raise OptionError(
                f"option 'passes': quantize: {why} needs the activations: give 'calibration', made by effc.calibrate"
            )

    @property
    def scheme(self) -> Scheme:
        byte = self.weights == "int8"
        group = self.group if self.group is not None else 0 if byte else _GROUP
        symmetric = self.symmetric if self.symmetric is not None else byte or self.weights == "nf4"
        return Scheme(self.weights, group, symmetric, self.activations, self.scales)

    @property
    def recipe(self) -> Recipe:
        return Recipe(**{f.name: getattr(self, f.name) for f in fields(Recipe)})

    def skips(self, weight: str) -> bool:
        """Whether the weight of this name stays as it is."""
        return any(fnmatch.fnmatchcase(weight, pattern) for pattern in self.skip)


def _looks_at_activations(scheme: Scheme, recipe: Recipe) -> str:
    """What does, as the user wrote it."""
    if scheme.activations == "tensor":
        return "activations='tensor'"
    if recipe.smoothing != "none":
        return f"smoothing='{recipe.smoothing}'"
    return f"rounding='{recipe.rounding}'" if recipe.rounding != "nearest" else ""


def _wrong(option: str, value: Any, expected: str) -> OptionError:
    return OptionError(f"option 'passes': quantize: '{option}' is {value!r}: expected {expected}")
