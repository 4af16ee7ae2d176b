"""FineQuant's adaptive granularity (Kim et al., "FineQuant: Unlocking Efficiency with Fine-Grained Weight-Only Quantization for LLMs",
2023, section 3): groups are as fine only where that pays. The paper halves groups while their ranges shrink; here the measure is the
error itself.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from effc.compiler.compress.clipping import grid_of
from effc.compiler.compress.nearest import nearest
from effc.compiler.ir.quantization import Clipping, Scheme

#: How much larger the squared error of coarser groups may be than that of the scheme's.
_BOUND = 1.15


def coarsened(weight: Tensor, scheme: Scheme, clipping: Clipping = "max", importance: Tensor | None = None) -> Scheme:
    """``scheme`` with the coarsest group, a doubling of its own or all of a channel, whose squared error of ``weight``, float32
    ``[out, in]``, rounded to the nearest, is at most 1.15 times that with the scheme's own group. ``importance``: as in `grid_of`.
    """
    size = weight.shape[1]
    finest = scheme.group or size
    groups = [finest << i for i in range((size // finest).bit_length()) if size % (finest << i) == 0]
    sizes = [*groups, *([] if groups[-1] == size else [size])]

    def error(tried: Scheme) -> float:
        difference = nearest(weight, grid_of(weight, tried, clipping, importance)).stored() - weight
        squares = difference.square_() if importance is None else difference.square_().mul_(importance)
        return float(squares.sum())

    bound = _BOUND * error(scheme)
    for group in reversed(sizes[1:]):
        tried = replace(scheme, group=0 if group == size else group)
        if error(tried) <= bound:
            return tried
    return scheme
