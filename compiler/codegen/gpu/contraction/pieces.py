"""Numbers of float32 as sums of a few of 16 bits, which tensor cores multiply exactly: the rounded number, then what rounding has left."""

from __future__ import annotations

import struct
from collections.abc import Sequence

#: As many bf16 have all digits of any float32.
_MOST = 3


def pieces_of(numbers: Sequence[float], dtype: str) -> int:
    """How many of ``dtype`` (bf16, f16) the ``numbers``, rounded to float32, are exactly the sum of; 0: no three are, as where one is
    beyond the range of ``dtype``.
    """
    rest = [struct.unpack("<f", struct.pack("<f", n))[0] for n in numbers]
    for count in range(1, _MOST + 1):
        rest = [n - _rounded(n, dtype) for n in rest]
        if not any(rest):
            return count
    return 0


def _rounded(number: float, dtype: str) -> float:
    """To nearest, ties to even; of a number too large for ``dtype`` nothing."""
    if dtype == "f16":
        try:
            found: float = struct.unpack("<e", struct.pack("<e", number))[0]
        except OverflowError:
            return 0.0
        return found
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    rounded: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return rounded if rounded - rounded == 0 else 0.0
