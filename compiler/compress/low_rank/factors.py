"""``Factors``: a weight as the product of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from effc.compiler.compress.form import Form, multiplied
from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.between import statistics_of
from effc.compiler.ir.calibration import Statistics


@dataclass(frozen=True, eq=False)
class Factors(Form):
    """``left @ right``: ``[out, rank]`` and ``[rank, in]``, of the parameter's dtype; weights that share ``right`` have the same tensor.
    ``shift`` ``[out]``: added to the layer's output; None for weights that were factorized without activations.
    """

    left: Tensor
    right: Tensor
    shift: Tensor | None

    @property
    def rank(self) -> int:
        return len(self.right)

    def parts(self) -> Mapping[str, Tensor]:
        shift = {} if self.shift is None else {"shift": self.shift}
        return {"left": self.left, "right": self.right, **shift}

    def met(self, statistics: Statistics) -> Mapping[str, Statistics]:
        sample, right = torch.from_numpy(statistics.sample), self.right.float()
        if sample.shape[1] != right.shape[1]:
            return {"right": statistics}  # of another model: what looks at it says so
        return {"right": statistics, "left": statistics_of(sample @ right.T)}

    @property
    def kind(self) -> str:
        return "low rank"

    def dense(self) -> Tensor:
        return self.left.float() @ self.right.float()

    def outputs(self, inputs: Inputs) -> Tensor:
        found = multiplied(inputs, self.dense())
        return found if self.shift is None else found + self.shift.float()
