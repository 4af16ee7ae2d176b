"""What sources of forms by options share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Generic, Self, TypeVar

from effc.compiler.ir.calibration import Calibration
from effc.compiler.ir.compression import Compression

Chosen = TypeVar("Chosen", bound=Compression)


class ByOptions(Generic[Chosen]):
    """`Forms` as ``options`` say."""

    def __init__(self, options: Chosen) -> None:
        self.options = options

    def narrowed(self, narrow: Callable[[Calibration], Calibration]) -> Self:
        """See `Forms`."""
        found = copy.copy(self)
        found.options = self.options.narrowed(narrow)
        return found
