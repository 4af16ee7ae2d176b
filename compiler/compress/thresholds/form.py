"""``Thresholded``: a weight whose activations get zeros."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from effc.compiler.compress.form import Form
from effc.compiler.compress.thresholds.roles import GatedMlp


@dataclass(frozen=True, eq=False)
class Thresholded(Form):
    """``matrix``: the weight, float32 ``[out, in]``, which stays as it is. ``threshold``: float32 ``[]`` or ``[in]``, of what it meets, or,
    of the last weight of ``mlp``, of the activated gate's magnitude; None for the other two. ``share``: of the magnitudes that is expected
    not to exceed it. No plan holds it.
    """

    matrix: Tensor
    threshold: Tensor | None
    mlp: GatedMlp | None
    share: float

    def parts(self) -> Mapping[str, Tensor]:
        return {} if self.threshold is None else {"threshold": self.threshold}

    @property
    def kind(self) -> str:
        return "thresholded"

    def dense(self) -> Tensor:
        return self.matrix
