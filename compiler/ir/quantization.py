"""``Scheme`` and ``Recipe``: what quantized weights look like, and how their codes are found. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from effc.compiler.ir.formats import NF4

#: Formats of weights by name -> bits of a code.
WEIGHT_BITS: Mapping[str, int] = {"int8": 8, "int4": 4, "int2": 2, "nf4": 4}

Activations = Literal["float", "token", "tensor"]
Smoothing = Literal["none", "awq", "smoothquant"]
Rounding = Literal["nearest", "gptq"]
Clipping = Literal["max", "percentile", "mse"]


@dataclass(frozen=True)
class Scheme:
    """The stored form of a weight ``[out, in…]``, and how the activations that meet it are held.

    ``weights``: a name of `WEIGHT_BITS`; integers are signed, ``nf4`` is an index into NF4's codebook. ``group``: how many consecutive
    elements of the sum (``in…``, flattened) share a scale; 0: all of an output channel. ``symmetric``: no zero points (always so for
    ``nf4``). ``activations``: ``"float"``; ``"token"``: int8 with a scale for each row, found as the model runs; ``"tensor"``: int8 with
    one scale and zero point from calibration.
    """

    weights: str = "int8"
    group: int = 0
    symmetric: bool = True
    activations: Activations = "float"

    @property
    def bits(self) -> int:
        return WEIGHT_BITS[self.weights]

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest code. Symmetric integers leave out the lowest, so that their range is that of their scale."""
        half = 1 << (self.bits - 1)
        if self.weights == "nf4":
            return 0, 2 * half - 1
        return (1 - half if self.symmetric else -half), half - 1

    @property
    def stored_limits(self) -> tuple[int, int]:
        """All that the bits of a code can hold."""
        half = 1 << (self.bits - 1)
        return (0, 2 * half - 1) if self.codebook else (-half, half - 1)

    @property
    def codebook(self) -> tuple[float, ...]:
        """What codes stand for, where that is not the integer itself."""
        return NF4.codebook if self.weights == "nf4" else ()


@dataclass(frozen=True)
class Recipe:
    """How codes are found: ``smoothing`` moves scales from activations to weights first, ``clipping`` sets the range of a group,
    ``rounding`` takes the nearest code or lets later elements make good the error of earlier ones.
    """

    smoothing: Smoothing = "none"
    rounding: Rounding = "nearest"
    clipping: Clipping = "max"
