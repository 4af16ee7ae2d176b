"""Transposed convolutions whose windows do not overlap: every output has one tap, so they are plain matrix products."""

from __future__ import annotations

from typing import Any

from effc.compiler.capture.importer.builder import Builder
from effc.compiler.capture.importer.shapes import reshape
from effc.compiler.capture.importer.types import Size, Tensor, opmath, simplify
from effc.compiler.ir.expr import as_expr


def spread(b: Builder, x: Tensor, w: Tensor, groups: int, body: Any) -> Tensor:
    """``out[n, o, p * k + t] = sum over c of x[n, c, p] * w[c, o, t]``, in the accumulator's dtype.

    ``x`` [n, c, …], ``w`` [c, o/g, k…] -> [n, o, … * k]; nothing is empty, ``c`` is a number where there are groups. ``body``: the
    product and its sum.
    """
    n, dtype = x.rank - 2, opmath(x.dtype)
    space, kernel = x.sizes[2:], w.sizes[2:]
    out_channels = w.sizes[1]
    channels: list[Size] = [out_channels]
    if groups > 1:
        each = simplify(as_expr(x.sizes[1]) // groups)
        x = reshape(b, x, (x.sizes[0], groups, each, *space))
        w = reshape(b, w, (groups, each, *w.sizes[1:]))
        channels = [groups, out_channels]
    pairs = [size for pair in zip(space, kernel, strict=True) for size in pair]
    sizes = (x.sizes[0], *channels, *pairs)
    rank, first = len(sizes), 1 + len(channels)
    group, c = (["d1"] if groups > 1 else []), f"d{rank}"
    places = [f"d{first + 2 * i}" for i in range(n)]
    taps = [f"d{first + 2 * i + 1}" for i in range(n)]
    result = b.generic(
        [(x, ["d0", *group, c, *places]), (w, [*group, c, f"d{first - 1}", *taps])],
        b.fill(0, dtype, sizes),
        [f"d{i}" for i in range(rank)],
        ["parallel"] * rank + ["reduction"],
        body,
        'effc.op = "conv"',
    )
    wide = [simplify(as_expr(size) * k) for size, k in zip(space, kernel, strict=True)]
    return reshape(b, result, (x.sizes[0], simplify(as_expr(out_channels) * groups), *wide))
