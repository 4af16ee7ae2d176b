"""Activation sparsity: elements of activations below a threshold become zeros, and the weights that meet them are not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from effc.compiler.ir.compression import Compression, compresses

Method = Literal["cats", "chess"]


@compresses
@dataclass(frozen=True)
class SparsifyActivations(Compression):
    """``passes={"activation_sparsity": {...}}``: gated MLPs, ``down(act(gate(x)) * up(x))``, of float32 or bfloat16, and with ``"chess"``
    the linear layers before and behind attention.

    ``sparsity``: the share of elements that become zeros over the rows that ``calibration`` has kept, above 0 and below 1. ``method``:
    ``"cats"`` (Lee et al., "CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models", COLM 2024): where
    ``|act(gate(x))|`` is at most one threshold a layer. ``"chess"`` (He et al., "CHESS: Optimizing LLM Inference via Channel-Wise
    Thresholding and Selective Sparsification", EMNLP 2024): by a threshold a channel, so that it is the products with the mean of
    ``|up(x)|`` that are small; and where an input of an attention projection is at most one threshold a layer. OptionError: a value that is
    none, or no calibration.
    """

    name: ClassVar[str] = "activation_sparsity"
    sparsity: float = 0.5
    method: Method = "cats"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.sparsity, float) and 0 < self.sparsity < 1):
            raise self.wrong("sparsity", "the share of zeros, above 0 and below 1")
        if self.method not in get_args(Method):
            raise self.wrong("method", f"one of {', '.join(get_args(Method))}")
        if self.calibration is None:
            raise self.refused("thresholds follow from the activations: give 'calibration', made by effc.calibrate")
