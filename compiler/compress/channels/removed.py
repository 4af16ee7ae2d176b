"""``Removed``: the constants of a graph whose channels are fewer, and how they are made from its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from effc.compiler.compress.channels.repair import repaired
from effc.compiler.compress.channels.slicing import Left
from effc.compiler.ir.calibration import Calibration, Statistics

#: Of one layer: what stands for the channels that go (`repair.repaired`), by a matrix and a constant.
Stand = tuple[Tensor | None, Tensor]


@dataclass(frozen=True, eq=False)
class Cut:
    """What becomes of a parameter: dimensions lose what ``left`` does not have. ``stand``: of a layer's weight that reads some of these, of
    output channels ``out``, what makes up for them.
    """

    left: Left
    out: int = 0
    stand: Stand | None = None

    def of(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rest of the parameter's value, and what has to be added to its layer's output, ``[out]``."""
        value = value.detach()
        if self.stand is None:
            return without(value, self.left), None
        read = next(left for dim, left in self.left.items() if dim != self.out)
        weight, bias = repaired(value.movedim(self.out, 0), ~read, *self.stand)
        outputs = {0: self.left[self.out]} if self.out in self.left else {}
        return without(weight.movedim(0, self.out).to(value.dtype), self.left), without(bias.to(value.dtype), outputs)


@dataclass(frozen=True, eq=False)
class Slice:
    """``constant`` stands for the parameter ``source``, called ``name``, ``bias``, if there is one, for what is added to its layer."""

    constant: Node
    bias: Node | None
    source: Node
    name: str
    cut: Cut


@dataclass(frozen=True, eq=False)
class Removed:
    """``slices`` make ``tensors``, all constants. ``met``, ``out``: of the channels that meet a weight, and of those that it makes, which
    are left, by its name where some go. ``notes``: for the report.
    """

    slices: Sequence[Slice]
    tensors: Mapping[Node, Tensor]
    met: Mapping[str, NDArray[np.bool_]]
    out: Mapping[str, NDArray[np.bool_]]
    notes: Sequence[str]

    @property
    def names(self) -> dict[Node, str]:
        """Of the constants; a weight keeps that of the parameter, so that later stages find it."""
        names = {s.constant: s.name for s in self.slices}
        return names | {s.bias: f"{s.name}:bias" for s in self.slices if s.bias is not None}

    @property
    def sources(self) -> list[Node]:
        return [s.source for s in self.slices]

    def of(self, values: Mapping[Node, Tensor]) -> dict[Node, Tensor]:
        """The constants from other values of the sources."""
        found = {}
        for made in self.slices:
            found[made.constant], bias = made.cut.of(values[made.source])
            if made.bias is not None and bias is not None:
                found[made.bias] = bias
        return found

    def narrowed(self, calibration: Calibration) -> Calibration:
        """With statistics of the channels that are left."""
        return replace(calibration, sites={name: self._narrowed(name, s) for name, s in calibration.sites.items()})

    def _narrowed(self, name: str, s: Statistics) -> Statistics:
        out, met = self.out.get(name), self.met.get(name)
        if out is not None:
            shown = None if s.sensitivity is None else s.sensitivity[out]
            s = replace(
                s, weight_absmax=s.weight_absmax[out], weight_mean_square=s.weight_mean_square[out], sensitivity=shown
            )
        if met is None or len(met) != len(s.least):
            return s
        moment = None if s.second_moment is None else s.second_moment[met][:, met]
        by_channel = {f: getattr(s, f)[met] for f in ("least", "greatest", "mean", "mean_square")}
        return replace(s, **by_channel, sample=s.sample[:, met], second_moment=moment)


def without(tensor: Tensor, left: Left) -> Tensor:
    """Less what is not ``left``, contiguous."""
    for dim, mask in left.items():
        tensor = tensor.index_select(dim, mask.nonzero().ravel())
    return tensor.contiguous()
