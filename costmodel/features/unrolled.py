"""Which loops of known length LLVM writes out, by its own thresholds (``LoopUnrollPass.cpp`` at -O3).

First, from the innermost loop outwards, each that is small when it is written out whole; later loops that hold no other are repeated as
often as fits the processor's buffer of decoded instructions, by a divisor of their length where there is one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Instructions of a loop that is written out whole (``UnrollThresholdAggressive``); of one that is repeated (``LoopMicroOpBufferSize`` of
#: Zen 4's scheduling model); of a loop's own counter and branch. Repeats where no divisor is small enough, at most.
_WHOLE, _REPEATED, _LOOP, _MOST = 300, 108, 2, 8

#: That a loop of one instruction a turn beside its own can have.
_COPIES = np.arange(2, _REPEATED // 2)


def whole(size: Array, turns: Array) -> Array:
    """Copies in the first place of a body of ``size`` instructions: all ``turns``, or one, which a loop then holds."""
    return np.where((size - _LOOP) * turns + _LOOP < _WHOLE, turns, 1.0)


def repeated(size: Array, turns: Array) -> Array:
    """Copies later, with those for what is left of the turns."""
    most = np.floor((_REPEATED - _LOOP) / np.maximum(size - _LOOP, 1))
    fits = (_COPIES[:, None] <= most) & (turns % _COPIES[:, None] == 0)
    found = np.max(np.where(fits, _COPIES[:, None], 1), axis=0)
    power = 2.0 ** np.floor(np.log2(np.clip(np.minimum(most, turns), 1, _MOST)))
    repeats: Array = np.where(found > 1, found, power + turns % power)
    return repeats
