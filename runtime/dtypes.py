"""Torch's dtypes and the names that MLIR, kernels and programs give them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

#: Name → torch dtype. Integers are signless in MLIR and in programs: the chosen op carries the sign.
TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "i64": torch.int64,
    "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "i1": torch.bool,
}  # fmt: skip
#: torch dtype → name; uint8 shares i8 with int8.
DTYPE_NAMES: Mapping[torch.dtype, str] = {**{dtype: name for name, dtype in TORCH_DTYPES.items()}, torch.uint8: "i8"}
