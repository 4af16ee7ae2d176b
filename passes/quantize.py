"""Quantization of weights, and of the activations that meet them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

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
    default, and integers among them zero points. ``smoothing``, ``rounding``, ``clipping``, ``grouping``: as in `Recipe`. The recipes that
    look at activations need ``calibration``, and ``activations="tensor"``. OptionError: a value that is none, or a calibration that is
    missing.
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group is not None and (isinstance(self.group, bool) or not isinstance(self.group, int)):
            raise self.wrong("group", "a whole number of elements, or 0 for all of a channel")
        if self.symmetric is not None and not isinstance(self.symmetric, bool):
            raise self.wrong("symmetric", "True or False")
        try:
            scheme, recipe = self.scheme, self.recipe
        except OptionError as error:
            raise self.refused(error) from None
        why = _looks_at_activations(scheme, recipe)
        if self.calibration is None and why:
            raise self.refused(f"{why} needs the activations: give 'calibration', made by effc.calibrate")

    @property
    def scheme(self) -> Scheme:
        byte = self.weights == "int8"
        group = self.group if self.group is not None else 0 if byte else _GROUP
        symmetric = self.symmetric if self.symmetric is not None else byte or self.weights == "nf4"
        return Scheme(self.weights, group, symmetric, self.activations, self.scales)

    @property
    def recipe(self) -> Recipe:
        return Recipe(**{f.name: getattr(self, f.name) for f in fields(Recipe)})


def _looks_at_activations(scheme: Scheme, recipe: Recipe) -> str:
    """What does, as the user wrote it."""
    if scheme.activations == "tensor":
        return "activations='tensor'"
    if recipe.smoothing != "none":
        return f"smoothing='{recipe.smoothing}'"
    return f"rounding='{recipe.rounding}'" if recipe.rounding != "nearest" else ""
