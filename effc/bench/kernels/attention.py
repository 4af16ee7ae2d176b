"""Scaled dot-product attention: many queries at once, causal, with fewer heads of keys, and one query as in decoding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch.nn import functional as F

from effc.bench.kernels.kernel import Function, Kernel, normals

#: Heads, queries, keys, head size.
_PREFILL = ((12, 128, 128, 64), (12, 197, 197, 64), (12, 1024, 1024, 64), (16, 512, 512, 128))
_CAUSAL = ((12, 128, 128, 64), (12, 1024, 1024, 64), (32, 512, 512, 128))
_DECODE = ((12, 1, 128, 64), (12, 1, 2048, 64), (32, 1, 4096, 128))
#: Heads of queries and of keys, queries, keys, head size: of a Llama of 135M, and of one of 8B.
_GROUPED = ((9, 3, 512, 512, 64), (32, 8, 512, 512, 128))
_GROUPED_DECODE = ((9, 3, 1, 1024, 64), (32, 8, 1, 8192, 128))


def kernels() -> Iterator[Kernel]:
    for shape in _PREFILL:
        yield _kernel("attention", *shape)
    for shape in _CAUSAL:
        yield _kernel("attention causal", *shape, causal=True)
    for heads, shared, queries, keys, size in _GROUPED:
        yield _kernel("attention grouped causal", heads, queries, keys, size, shared, causal=True)
    for shape in _DECODE:
        yield _kernel("attention decode", *shape)
    for heads, shared, queries, keys, size in _GROUPED_DECODE:
        yield _kernel("attention grouped decode", heads, queries, keys, size, shared)


def _kernel(
    family: str, heads: int, queries: int, keys: int, size: int, shared: int | None = None, causal: bool = False
) -> Kernel:
    """``shared``: heads of keys and values. A causal one has as many queries as keys, and needs the pairs up to the diagonal."""
    pairs = queries * (queries + 1) // 2 if causal else queries * keys
    both = str(heads) if shared is None else f"{heads}/{shared}"
    there = (1, shared or heads, keys, size)
    return Kernel(
        f"{family}/{both}x{queries}x{keys}x{size}",
        partial(
            Function,
            partial(F.scaled_dot_product_attention, is_causal=causal, enable_gqa=shared is not None),
        ),
        normals((1, heads, queries, size), there, there),
        flops=4 * heads * pairs * size,
    )
