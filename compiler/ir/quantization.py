"""``Scheme`` and ``Recipe``: what quantized weights look like, and how their codes are found. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.formats import NF4

#: Formats of weights by name -> bits of a code.
WEIGHT_BITS: Mapping[str, int] = {"int8": 8, "int4": 4, "int2": 2, "nf4": 4}
BYTE = 8

Weights = Literal["int8", "int4", "int2", "nf4"]
Activations = Literal["float", "token", "tensor"]
Scales = Literal["float", "double", "dual"]
Smoothing = Literal["none", "awq", "smoothquant"]
Rounding = Literal["nearest", "gptq"]
Clipping = Literal["max", "percentile", "mse"]
Grouping = Literal["fixed", "finequant"]


@dataclass(frozen=True)
class Scheme:
    """The stored form of a weight ``[out, in…]``, and how the activations that meet it are held.

    ``weights``: a name of `WEIGHT_BITS`; integers are signed, ``nf4`` is an index into NF4's codebook. ``group``: how many consecutive
    elements of the sum (``in…``, flattened) share a scale; 0: all of an output channel. ``symmetric``: no zero points (always so for
    ``nf4``). ``activations``: ``"float"``; ``"token"``: int8 with a scale for each row, found as the model runs; ``"tensor"``: int8 with
    one scale and zero point from calibration. ``scales``: ``"float"``; ``"double"``: themselves quantized to int8, in blocks; ``"dual"``:
    small integers times one float a channel, so that codes times the former are bytes, which are multiplied with those of activations.

    OptionError: a value that none of these has; zero points of ``nf4``; ``"dual"`` scales of codes that are no integers below a byte, or
    for activations in floats.
    """

    weights: Weights = "int8"
    group: int = 0
    symmetric: bool = True
    activations: Activations = "float"
    scales: Scales = "float"

    def __post_init__(self) -> None:
        _check_names(self)
        if self.group < 0:
            raise OptionError(f"a group has 1 element or more, or 0 for all of a channel, not {self.group}")
        if self.weights == "nf4" and not self.symmetric:
            raise OptionError("nf4 has no zero points: its codebook holds 0. Leave symmetric as it is, or choose int4")
        if self.scales == "dual" and (self.bits == BYTE or self.weights == "nf4"):
            raise OptionError(
                f"scales='dual' makes bytes of integers of fewer bits, which {self.weights} is not: choose int4 or int2"
            )
        if self.scales == "dual" and self.activations == "float":
            raise OptionError(
                "scales='dual' is for products with activations in int8: choose activations='token' or 'tensor'"
            )

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
    ``rounding`` takes the nearest code or lets later elements make good the error of earlier ones. ``grouping``: groups are the
    scheme's, or as much coarser as costs little.

    OptionError: a value that none of these has.
    """

    smoothing: Smoothing = "none"
    rounding: Rounding = "nearest"
    clipping: Clipping = "max"
    grouping: Grouping = "fixed"

    def __post_init__(self) -> None:
        _check_names(self)


def _check_names(chosen: Scheme | Recipe) -> None:
    hints = get_type_hints(type(chosen))
    for field in fields(chosen):
        names, value = get_args(hints[field.name]), getattr(chosen, field.name)
        if names and value not in names:
            raise OptionError(f"{field.name} is one of {', '.join(names)}, not {value!r}")
