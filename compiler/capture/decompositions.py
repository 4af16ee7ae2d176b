"""Which ATen ops are decomposed before a graph is divided.

The table is Inductor's, which covers what AOTAutograd meets (batch norm, layer norm, softmax, GELU and their backwards
become pointwise ops and reductions), with effc's own, less what the importer takes whole, and less what ATen must run
as eager does: random ops, so that one seed gives eager's numbers, and backwards that ATen has as one kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from effc.compiler.capture.own_decompositions import own_decompositions
from effc.compiler.capture.quantization import quantization

#: Inductor lowers pooling to private prims, turns some matrix products into pointwise code that a contraction beats, and fails to take
#: apart ``lerp`` of a channels_last tensor with one of lower rank.
_IMPORTED_WHOLE = (
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "index_select", "index_add", "flip", "tril", "triu", "fmax", "fmin", "cat",
    "lerp",
)  # fmt: skip
_ONE_KERNEL = ("convolution_backward", "max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward")
_RANDOM = (
    "bernoulli", "bernoulli_", "cauchy", "cauchy_", "exponential", "exponential_", "geometric", "geometric_",
    "log_normal", "log_normal_", "multinomial", "native_dropout", "normal", "normal_", "normal_functional", "rand_like",
    "randint", "randint_like", "randn_like", "rrelu_with_noise", "rrelu_with_noise_", "rrelu_with_noise_functional",
    "uniform", "uniform_",
)  # fmt: skip


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The table for AOTAutograd."""
    return _of_torch() | quantization()


@lru_cache(maxsize=1)
def _of_torch() -> dict[Any, Callable[..., Any]]:
    """Inductor's costs 0.15 s to import beside the rest of Dynamo."""
    from torch._inductor.decomposition import select_decomp_table

    whole = {f"aten::{name}" for name in (*_IMPORTED_WHOLE, *_ONE_KERNEL, *_RANDOM)}

    def stays(op: Any) -> bool:
        return isinstance(op, torch._ops.OpOverload) and op._schema.name in whole

    inductor = {op: function for op, function in select_decomp_table().items() if not stays(op)}
    return inductor | own_decompositions()
