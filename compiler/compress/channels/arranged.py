"""``Arranged``: the constants of a graph whose channels stand in another order, and how they are made from its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from effc.compiler.ir.calibration import Calibration, Statistics

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
        return replace(calibration, sites={name: self._ordered(name, s) for name, s in calibration.sites.items()})

    def _ordered(self, name: str, s: Statistics) -> Statistics:
        out, met = self.out.get(name), self.met.get(name)
        if out is not None:
            shown = None if s.sensitivity is None else s.sensitivity[out]
            s = replace(
                s, weight_absmax=s.weight_absmax[out], weight_mean_square=s.weight_mean_square[out], sensitivity=shown
            )
        if met is None or len(met) != len(s.least):
            return s
        by_channel = {f: getattr(s, f)[met] for f in ("least", "greatest", "mean", "mean_square")}
        moment = None if s.second_moment is None else s.second_moment[met][:, met]
        windows = None if s.windows is None else s.windows[:, met]
        return replace(s, **by_channel, sample=s.sample[:, met], second_moment=moment, windows=windows)
