"""Weights of few bits on a GPU, activations in bfloat16: torchao's, compiled by Inductor, and effc's own of the same grain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from effc.bench.systems.system import DTYPES, Call, Setting, cast, missing, tensors

Bits = Literal["int4", "int8"]
#: Neighbouring weights that share a scale, of four bits; of eight a row does.
_GROUP = 128


class TorchaoWeights:
    """``torchao.quantization.quantize_`` with its configuration for ``bits``, then ``torch.compile``."""

    def __init__(self, bits: Bits) -> None:
        self._bits, self.name = bits, f"torchao-{bits}"

    def absent(self, setting: Setting) -> str | None:
        return missing("torchao") or _absent(setting)

    def prepare(
        self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting, calibration: Sequence[tuple[Any, ...]] = ()
    ) -> Call:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

        # Of its layouts of four bits the one that torch's own kernel reads.
        packing: Any = "tile_packed_to_4d"
        chosen = (
            Int8WeightOnlyConfig()
            if self._bits == "int8"
            else Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format=packing)
        )
        module, inputs = cast(module, inputs, DTYPES[setting.dtype])
        quantize_(module, chosen)
        compiled = torch.compile(module)
        return lambda: tensors(compiled(*inputs))


class EffcWeights:
    """``torch.compile(model, backend="effc", options={"passes": {"quantize": …}})``."""

    def __init__(self, bits: Bits) -> None:
        self._bits, self.name = bits, f"effc-{bits}"

    def absent(self, setting: Setting) -> str | None:
        return _absent(setting)

    def prepare(
        self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting, calibration: Sequence[tuple[Any, ...]] = ()
    ) -> Call:
        chosen = {"weights": self._bits, **({"group": _GROUP} if self._bits == "int4" else {})}
        module, inputs = cast(module, inputs, DTYPES[setting.dtype])
        options: dict[str, Any] = {"passes": {"quantize": chosen}}
        compiled = torch.compile(module, backend="effc", options=options)
        return lambda: tensors(compiled(*inputs))


def _absent(setting: Setting) -> str | None:
    return None if setting.dtype == "bfloat16" else "its activations are bfloat16: --dtype bfloat16"
