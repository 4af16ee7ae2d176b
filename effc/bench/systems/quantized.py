"""int8 models by PyTorch's own flow: pt2e of torchao, static, with the default configuration for x86."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from effc.bench.systems.system import missing


def absent() -> str | None:
    """Why there can be no such model."""
    return missing("torchao")


def quantize(module: nn.Module, inputs: tuple[Any, ...], calibration: Sequence[tuple[Any, ...]]) -> nn.Module:
    """``module`` with quantize and dequantize operations: activations unsigned and a tensor, weights signed and a channel. Ranges are
    those that ``calibration`` shows. The import registers Inductor's patterns for such graphs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torchao
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
            X86InductorQuantizer,
            get_default_x86_inductor_quantization_config,
        )

        quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(module, inputs).module(), quantizer)
        for batch in calibration:
            prepared(*batch)
        converted: nn.Module = convert_pt2e(prepared)
        return converted
