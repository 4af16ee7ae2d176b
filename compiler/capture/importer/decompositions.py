"""The decomposition table for AOTAutograd under which the importer sees its graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from effc.compiler.capture.importer.registry import find

#: Kept whole although Inductor decomposes them: it lowers pooling to private prims, and turns some matrix products into
#: pointwise code that a contraction beats.
_KEPT = (
    "aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default", "aten.mm.default", "aten.bmm.default",
    "aten.addmm.default", "aten.mv.default", "aten.dot.default", "aten.baddbmm.default", "aten.convolution_backward.default",
    "aten.index_select.default", "aten.index_add.default", "aten.flip.default", "aten.tril.default", "aten.triu.default",
)  # fmt: skip


@cache
def decompositions() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    """Inductor's table less the ops that the importer takes whole."""
    from torch._inductor.decomposition import select_decomp_table

    table = dict(select_decomp_table())
    for name in _KEPT:
        overload = find(name)
        if overload is not None:
            table.pop(overload, None)
    return table
