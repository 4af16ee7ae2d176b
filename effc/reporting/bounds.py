"""What bounds a stretch of kernels: arithmetic, or the levels of a machine's memory (see `waterline`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from effc.compiler.ir.errors import InputError


@dataclass(frozen=True)
class Level:
    """Of memory: ``capacity`` bytes in the reach of all threads together, read at ``bandwidth`` bytes a second by all of them."""

    name: str
    capacity: float
    bandwidth: float


@dataclass(frozen=True)
class Roof:
    """``peak``: float32 operations a second of all threads, a multiply-add counted as two; ``levels``: from the nearest to memory, whose
    capacity is infinite. InputError: a level or a speed that no machine has.
    """

    peak: float
    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        capacities = [level.capacity for level in self.levels]
        if not capacities or capacities[-1] != math.inf or sorted(capacities) != capacities:
            raise InputError(f"levels of memory of {capacities} bytes: give them in ascending order, the last infinite")
        speeds = (self.peak, *(level.bandwidth for level in self.levels))
        if not all(0 < speed < math.inf for speed in speeds):
            raise InputError(f"peak and bandwidths of {speeds}: all are positive and finite")

    def level(self, distance: int) -> int:
        """The number of the nearest level that holds as many bytes."""
        return next(i for i, level in enumerate(self.levels) if distance <= level.capacity)

    def ridge(self, level: Level) -> float:
        """Operations a byte below which a kernel that reads from ``level`` is bound by it."""
        return self.peak / level.bandwidth


@dataclass(frozen=True)
class Stretch:
    """The layers from ``first`` up to ``end`` as one kernel. ``operations``: as `Layer`'s; ``traffic``: bytes at each of the roof's levels;
    ``compute``, ``memory``: seconds at least; ``measured``: the sum of the layers' seconds as they are, or None.
    """

    name: str
    location: str
    first: int
    end: int
    operations: int
    traffic: tuple[int, ...]
    compute: float
    memory: float
    measured: float | None

    @property
    def bytes(self) -> int:
        return sum(self.traffic)

    @property
    def intensity(self) -> float:
        """Operations a byte; infinite where nothing is moved."""
        return self.operations / self.bytes if self.bytes else math.inf

    @property
    def attainable(self) -> float:
        """Seconds at least."""
        return max(self.compute, self.memory)

    @property
    def is_under_water(self) -> bool:
        """Whether memory takes longer than arithmetic."""
        return self.memory > self.compute
