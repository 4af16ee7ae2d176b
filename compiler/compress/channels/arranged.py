"""``Arranged``: the constants of a graph whose channels stand in another order, and how they are made from its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from effc.compiler.compress.channels.statistics import with_channels
from effc.compiler.ir.calibration import Calibration

#: Along a dimension: which channel stands at each place.
Order = Mapping[int, Tensor]


@dataclass(frozen=True, eq=False)
class Ordered:
    """``constant`` stands for the parameter ``source``, called ``name``."""

    constant: Node
    source: Node
    name: str
    order: Order

    def of(self, value: Tensor) -> Tensor:
        found = value.detach()
        for dim, places in self.order.items():
            found = found.index_select(dim, places)
        return found.contiguous()


@dataclass(frozen=True, eq=False)
class Arranged:
    """``ordered`` make ``tensors``, all constants. ``met``, ``out``: of the channels that meet a weight, and of those that it makes, which
    stands where, by its name where they have moved. ``notes``: for the report.
    """

    ordered: Sequence[Ordered]
    tensors: Mapping[Node, Tensor]
    met: Mapping[str, NDArray[np.int64]]
    out: Mapping[str, NDArray[np.int64]]
    notes: Sequence[str]

    @property
    def names(self) -> dict[Node, str]:
        """Of the constants: those of the parameters, so that later stages find them."""
        return {o.constant: o.name for o in self.ordered}

    @property
    def sources(self) -> list[Node]:
        return [o.source for o in self.ordered]

    def refusal(self, values: Mapping[Node, Tensor]) -> str:
        """Any values can be put in order."""
        return ""

    def of(self, values: Mapping[Node, Tensor]) -> dict[Node, Tensor]:
        """The constants from other values of the sources."""
        return {o.constant: o.of(values[o.source]) for o in self.ordered}

    def narrowed(self, calibration: Calibration) -> Calibration:
        """With statistics in the order of the channels."""
        return with_channels(calibration, self.out, self.met)
