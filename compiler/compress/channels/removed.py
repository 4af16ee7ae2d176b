"""``Removed``: the constants of a graph whose channels are fewer, and how they are made from its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from effc.compiler.compress.channels.repair import repaired
from effc.compiler.compress.channels.slicing import Left
from effc.compiler.compress.channels.statistics import with_channels
from effc.compiler.ir.calibration import Calibration

#: Of one layer: what stands for the channels that go (`repair.repaired`), by a matrix and a constant.
Stand = tuple[Tensor | None, Tensor]


@dataclass(frozen=True, eq=False)
class Cut:
    """What becomes of a parameter: dimensions lose what ``left`` does not have. ``stand``: of a layer's weight that reads some of these, of
    dimensions ``axes`` (`WeightSite.axes`), what makes up for them.
    """

    left: Left
    axes: Sequence[int] = ()
    stand: Stand | None = None

    def of(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rest of the parameter's value, and what has to be added to its layer's output, ``[out]``."""
        value = value.detach()
        if self.stand is None:
            return without(value, self.left), None
        out, channels = self.axes[:2]
        weight, bias = repaired(value.permute(*self.axes), ~self.left[channels], *self.stand)
        outputs = {0: self.left[out]} if out in self.left else {}
        back = weight.permute(*np.argsort(self.axes).tolist())
        return without(back.to(value.dtype), self.left), without(bias.to(value.dtype), outputs)


@dataclass(frozen=True, eq=False)
class Slice:
    """``constant`` stands for the parameter ``source``, called ``name``, ``bias``, if there is one, for what is added to its layer."""

    constant: Node
    bias: Node | None
    source: Node
    name: str
    cut: Cut


@dataclass(frozen=True, eq=False)
class Required:
    """Of ``param``, called ``name``, at ``places`` along ``dim``: all is one of ``numbers``, a number for each place, or, None, finite."""

    param: Node
    name: str
    dim: int
    places: Sequence[int]
    numbers: Sequence[float] | None

    def holds(self, value: Tensor) -> bool:
        rows = along(value, self.dim)[list(self.places)]
        if self.numbers is None:
            return bool(rows.isfinite().all())
        return bool((rows.double() == torch.tensor(self.numbers, dtype=torch.float64)[:, None]).all())


@dataclass(frozen=True, eq=False)
class Removed:
    """``slices`` make ``tensors``, all constants. ``met``, ``out``: of the channels that meet a weight, and of those that it makes, which
    are left, by its name where some go. ``notes``: for the report. ``required``: of new values of the sources.
    """

    slices: Sequence[Slice]
    tensors: Mapping[Node, Tensor]
    met: Mapping[str, NDArray[np.bool_]]
    out: Mapping[str, NDArray[np.bool_]]
    notes: Sequence[str]
    required: Sequence[Required] = ()

    @staticmethod
    def nothing() -> Removed:
        return Removed([], {}, {}, {}, [])

    @property
    def names(self) -> dict[Node, str]:
        """Of the constants; a weight keeps that of the parameter, so that later stages find it."""
        names = {s.constant: s.name for s in self.slices}
        return names | {s.bias: f"{s.name}:bias" for s in self.slices if s.bias is not None}

    @property
    def sources(self) -> list[Node]:
        return [s.source for s in self.slices]

    def refusal(self, values: Mapping[Node, Tensor]) -> str:
        """Why other values of the sources cannot lose these channels, or ``""``."""
        lost = next((r.name for r in self.required if not r.holds(values[r.param])), None)
        return (
            f"{lost} needs channels that zeros made needless when it was compiled: compile the model again"
            if lost
            else ""
        )

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
        return with_channels(calibration, self.out, self.met)


def along(tensor: Tensor, dim: int) -> Tensor:
    """``[channels, elements]``: of each channel along ``dim``, in a dtype that is computed with."""
    rows = tensor.detach().movedim(dim, 0)
    rows = rows.flatten(1) if rows.dim() > 1 else rows[:, None]
    return rows.float() if rows.is_floating_point() and rows.itemsize == 1 else rows


def without(tensor: Tensor, left: Left) -> Tensor:
    """Less what is not ``left``, contiguous."""
    for dim, mask in left.items():
        tensor = tensor.index_select(dim, mask.nonzero().ravel())
    return tensor.contiguous()
