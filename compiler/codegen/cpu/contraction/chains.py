"""How a long sum is cut into chains of additions, whose partial sums are added.

Rounding errors of a chain grow with its length (relative L2 error over K = 4096: 9.5 eps in one chain, 1.9 in blocks of 128; MKL's is
2.2). Roundings of equal terms all go one way. A packed factor is a parameter, whose values differ; two factors that are data may repeat
(an expanded tensor, a tensor times itself), so their blocks are half as long: four values, each 64 times, then sum to
3.8 eps of error instead of 8.1 (ATen: 3.3). For packed factors too it would cost 3 % of ResNet-50's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from effc.compiler.ir.expr import Expr

#: Products that one chain of additions takes, of a parameter and of data alone.
_OF_PARAMETER, _OF_DATA = 128, 64


def chain_length(packed: bool) -> int:
    """Products that one chain of additions takes."""
    return _OF_PARAMETER if packed else _OF_DATA


def longest(chain: int) -> int:
    """Products of a sum that is not cut, and of a block at most, where such a length divides the sum."""
    return chain + chain // 2


def block(sizes: Sequence[Expr], chain: int) -> int:
    """Points of the first of ``sizes`` in one chain; 0 where it is not divided: all of K is short, or what is inside it is long.

    A divisor of the size needs no code for a remainder.
    """
    inside = [s.constant for s in sizes[1:]]
    if None in inside:
        return 0
    each = prod(n for n in inside if n is not None)
    limit = longest(chain)
    size = sizes[0].constant
    if not 0 < each <= limit or (size is not None and size * each <= limit):
        return 0
    if size is not None:
        divisor = next((n for n in range(limit // each, chain // (2 * each), -1) if size % n == 0), None)
        if divisor:
            return divisor
    return max(chain // each, 1)
