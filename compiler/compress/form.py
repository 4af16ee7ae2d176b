"""``Form``: what stands for a weight in a compressed graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from effc.compiler.compress.inputs import Inputs, by_channel
from effc.compiler.ir.calibration import Statistics


class Form(ABC):
    """Stands for a weight ``[out, in…]``, its dimensions behind the first flattened to ``in``."""

    @abstractmethod
    def parts(self) -> Mapping[str, Tensor]:
        """The constants that the graph holds, by role."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What tells forms with the same parts apart."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The weight that exact activations meet: float32 ``[out, in]``."""

    def met(self, statistics: Statistics) -> Mapping[str, Statistics]:
        """Of what meets each of `parts` that is a weight, by role, where that can be told; ``statistics``: of what meets the whole."""
        return {}

    def outputs(self, inputs: Inputs) -> Tensor:
        """What a layer without a bias gives for the rows of calibration, as this form holds weight and activations: float32 ``[rows, out *
        positions]``, positions of a window one by one.
        """
        return multiplied(inputs, self.dense())


def multiplied(inputs: Inputs, matrix: Tensor) -> Tensor:
    """The rows of calibration times ``matrix``, ``[out, in]``: ``[rows, out * positions]``."""
    return inputs.sample @ by_channel(matrix, inputs.channels).T
