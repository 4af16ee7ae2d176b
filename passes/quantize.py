"""Quantization of weights, and of the activations that meet them."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from effc.compiler.ir.calibration import Calibration
from effc.compiler.ir.compression import Compression, compresses
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import suggest
from effc.compiler.ir.quantization import WEIGHT_BITS, Activations, Clipping, Recipe, Rounding, Scheme, Smoothing

#: Elements of the sum that share a scale, where nothing is said: all of a channel for bytes, groups for codes of fewer bits.
_GROUP = 64


@compresses
@dataclass(frozen=True)
class Quantize(Compression):
    """``passes={"quantize": {...}}``: every linear layer, convolution and embedding that the options fit.

    ``weights``, ``group``, ``symmetric``, ``activations``: as in `Scheme`; of codes of less than a byte the default is groups of 64 with zero
    points. ``smoothing``, ``rounding``, ``clipping``: as in `Recipe`. ``calibration``: what ``effc.calibrate`` returned; the recipes that look
    at activations need it, and ``activations="tensor"``. ``skip``: names of weights that stay, with ``*`` and ``?``. OptionError: a value
    that is none, or a calibration that is missing.
    """

    name: ClassVar[str] = "quantize"
    weights: str = "int8"
    group: int | None = None
    symmetric: bool | None = None
    activations: Activations = "float"
    smoothing: Smoothing = "none"
    rounding: Rounding = "nearest"
    clipping: Clipping = "max"
    calibration: Calibration | None = None
    skip: Sequence[str] = ()

    def __post_init__(self) -> None:
        _one_of("weights", self.weights, WEIGHT_BITS)
        for option, values in (("activations", Activations), ("smoothing", Smoothing), ("rounding", Rounding), ("clipping", Clipping)):
            _one_of(option, getattr(self, option), get_args(values))
        if self.group is not None and (isinstance(self.group, bool) or not isinstance(self.group, int) or self.group < 0):
            raise _wrong("group", self.group, "a whole number of elements, or 0 for all of a channel")
        if self.symmetric is not None and not isinstance(self.symmetric, bool):
            raise _wrong("symmetric", self.symmetric, "True or False")
        if self.weights == "nf4" and self.symmetric is False:
            raise OptionError("option 'passes': quantize: 'nf4' has no zero points: leave 'symmetric' out")
        if isinstance(self.skip, str) or not all(isinstance(s, str) for s in self.skip):
            raise _wrong("skip", self.skip, "a list of names")
        object.__setattr__(self, "skip", tuple(self.skip))
        if self.calibration is not None and not isinstance(self.calibration, Calibration):
            raise _wrong("calibration", self.calibration, "what effc.calibrate returned")
        if self.calibration is None and (why := self._needs_calibration()):
            raise OptionError(
                f"option 'passes': quantize: {why} needs the activations: give 'calibration', made by effc.calibrate"
            )

    def _needs_calibration(self) -> str:
        if self.activations == "tensor":
            return "activations='tensor'"
        if self.smoothing != "none":
            return f"smoothing='{self.smoothing}'"
        return f"rounding='{self.rounding}'" if self.rounding != "nearest" else ""

    @property
    def scheme(self) -> Scheme:
        byte = self.weights == "int8"
        group = self.group if self.group is not None else 0 if byte else _GROUP
        symmetric = self.symmetric if self.symmetric is not None else byte or self.weights == "nf4"
        return Scheme(self.weights, group, symmetric, self.activations)

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.smoothing, self.rounding, self.clipping)

    def skips(self, weight: str) -> bool:
        """Whether the weight of this name stays as it is."""
        return any(fnmatch.fnmatchcase(weight, pattern) for pattern in self.skip)


def _one_of(option: str, value: Any, known: Collection[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise OptionError(f"option 'passes': quantize: '{option}' is {value!r}; {suggest(str(value), known)}")


def _wrong(option: str, value: Any, expected: str) -> OptionError:
    return OptionError(f"option 'passes': quantize: '{option}' is {value!r}: expected {expected}")
