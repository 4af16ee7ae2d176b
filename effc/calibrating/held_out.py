"""How many batches of a calibration are held out: by which nothing is compressed, so that errors can be told by them."""

from __future__ import annotations

from numbers import Real
from typing import Any

from effc.compiler.ir.errors import OptionError


def checked_share(value: Any) -> float:
    """OptionError: no share of the batches that leaves some."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise OptionError(f"'held_out' is {value!r}: expected a share of the batches, from 0 to less than 1")
    return float(value)


def count_held_out(batches: int, share: float) -> int:
    """Of 1: 0, for compression needs it; of more at least 1, unless ``share`` is 0, and never all."""
    return min(max(1, round(share * batches)), batches - 1) if share else 0
