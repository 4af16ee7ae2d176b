"""Transposed convolutions, which input gradients of convolutions are too, without a product that has a zero as its factor.

Output ``p`` has the products of inputs ``q`` and taps ``t`` with ``p + padding = q * stride + t * dilation``. So positions of one
remainder by the stride (a *phase*) meet the same taps, and are a plain convolution (Shi et al., "Is the deconvolution layer the same
as a convolutional layer?", 2016). Neighbouring phases whose taps are neighbours at the same inputs (a *run*) are columns of one
convolution: where windows do not overlap all of them are, and it is a matrix product; else each dimension has two or three runs,
whatever the stride.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import gcd, prod

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import Builder
from effc.compiler.capture.importer.padding import pad
from effc.compiler.capture.importer.shapes import concat, extract_slice, permute, reshape
from effc.compiler.capture.importer.types import Scalar, Size, Tensor, is_empty, opmath, simplify
from effc.compiler.capture.importer.windows import Window, moving, multiply_add, split_channels, times
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import as_expr

#: Convolutions that one becomes at most: a dilated one has no runs of several phases.
_MOST_PIECES = 64


@dataclass(frozen=True)
class Run:
    """``phases`` neighbours of one dimension, of ``taps`` each. The first one's output at a place is the sum over ``j < taps`` of input
    ``place + start - j * reach`` times tap ``first + j * step``; each further phase takes the taps behind.
    """

    phases: int
    taps: int
    first: int = 0
    start: int = 0
    step: int = 1
    reach: int = 1

    @property
    def low(self) -> int:
        """How far before the first input the window starts."""
        return (self.taps - 1) * self.reach - self.start

    def following(self) -> Run:
        """A run of one phase that continues this one."""
        return replace(self, phases=1, first=self.first + self.phases if self.taps else 0)


def runs(kernel: int, stride: int, padding: int, dilation: int) -> list[Run]:
    """All phases of one dimension, in order."""
    common = gcd(stride, dilation)
    step, reach = stride // common, dilation // common
    found: list[Run] = []
    for phase in range(stride):
        place = phase + padding
        first = next((t for t in range(min(step, kernel)) if (place - t * dilation) % stride == 0), None)
        run = Run(1, 0)
        if first is not None:
            run = Run(1, -(-(kernel - first) // step), first, (place - first * dilation) // stride, step, reach)
        if found and run == found[-1].following():
            found[-1] = replace(found[-1], phases=found[-1].phases + 1)
        else:
            found.append(run)
    return found


def transposed_convolution(
    b: Builder,
    x: Tensor,
    w: Tensor,
    spatial: Sequence[Size],
    window: Window,
    groups: int,
    finish: Callable[[Tensor], Tensor],
) -> Tensor:
    """``x`` [n, c, …], ``w`` [c, o/g, k…] -> [n, o, spatial…]; no output size is 0.

    ``finish``: what is done to sums [n, o, …] of any further dimensions, so that they are written once, into their places.
    """
    n = len(spatial)
    kernel = [k for k in w.sizes[2:] if isinstance(k, int)]
    if len(kernel) < n:
        raise UnsupportedError("a transposed convolution with a symbolic kernel")
    channels = simplify(as_expr(w.sizes[1]) * groups)
    if is_empty(x.sizes) or is_empty(w.sizes):
        return finish(b.fill(0, opmath(x.dtype), (x.sizes[0], channels, *spatial)))
    along = [runs(kernel[i], window.stride[i], window.padding[i], window.dilation[i]) for i in range(n)]
    if prod(len(each) for each in along) > _MOST_PIECES:
        raise UnsupportedError(f"a transposed convolution of stride {window.stride} and dilation {window.dilation}")
    counts = [_places(out, size, s) for out, size, s in zip(spatial, x.sizes[2:], window.stride, strict=True)]
    used = [[run for run in each if run.taps] for each in along]
    low = [max(run.low for run in each) for each in used]
    last = [max(run.start for run in each) for each in used]
    high = [simplify(as_expr(c) + a - s) for c, a, s in zip(counts, last, x.sizes[2:], strict=True)]
    piece = partial(_piece, b, pad(b, x, [0, 0, *low], [0, 0, *high], 0), w, counts, low, groups)

    def joined(chosen: tuple[Run, ...]) -> Tensor:
        """[n, o, places, phases, places, phases, …] of the ``chosen`` runs, and of all runs of further dimensions."""
        at = len(chosen)
        if at == n:
            sums = finish(piece(chosen))
            pairs = [size for i in range(n) for size in (counts[i], chosen[i].phases)]
            return reshape(b, sums, (x.sizes[0], channels, *pairs))
        parts = [joined((*chosen, run)) for run in along[at]]
        axis = 3 + 2 * at
        return concat(b, parts, axis, (*parts[0].sizes[:axis], window.stride[at], *parts[0].sizes[axis + 1 :]))

    wide = [times(c, s) for c, s in zip(counts, window.stride, strict=True)]
    result = reshape(b, joined(()), (x.sizes[0], channels, *wide))
    for i in range(n):
        if wide[i] != spatial[i]:
            result = extract_slice(b, result, 2 + i, 0, spatial[i])
    return result


def _places(out: Size, size: Size, stride: int) -> Size:
    """Outputs of a phase of ``size`` inputs, of which the last may lie beyond ``out``."""
    if isinstance(out, int):
        return -(-out // stride)
    rest = simplify(as_expr(out) - as_expr(size) * stride)
    if isinstance(rest, int):
        return simplify(as_expr(size) - (-rest // stride))
    if stride == 1:
        return out
    raise UnsupportedError("the gradient of a strided convolution with symbolic sizes")


def _piece(
    b: Builder, x: Tensor, w: Tensor, counts: Sequence[Size], low: Sequence[int], groups: int, chosen: Sequence[Run]
) -> Tensor:
    """The sums of one run of each dimension, in the accumulator's dtype: [n, o, places, phases if several, …].

    ``x``: with ``low`` zeros before it in each dimension; ``counts``: of the places.
    """
    n, dtype = len(chosen), opmath(x.dtype)
    out_channels, batch = w.sizes[1], x.sizes[0]
    own = [size for i in range(n) for size in (counts[i], chosen[i].phases)[: 2 if chosen[i].phases > 1 else 1]]
    whole = (batch, simplify(as_expr(out_channels) * groups), *own)
    if not all(run.taps for run in chosen):
        return b.fill(0, dtype, whole)
    for i, run in enumerate(chosen):
        x = extract_slice(b, x, 2 + i, low[i] - run.low, simplify(as_expr(counts[i]) + (run.taps - 1) * run.reach))
    w = _kernel(b, w, chosen)
    channels: list[Size] = [out_channels]
    if groups > 1:
        x, w = split_channels(b, x, 1, groups), split_channels(b, w, 0, groups)
        channels = [groups, out_channels]
    sizes = (batch, *channels, *own)
    names = iter(f"d{i}" for i in range(len(sizes) + 1 + n))
    batches, *group, o = (next(names) for _ in range(1 + len(channels)))
    places, phases = [], []
    for run in chosen:
        places.append(next(names))
        phases += [next(names)] if run.phases > 1 else []
    c = next(names)
    taps = [next(names) if run.taps > 1 else "" for run in chosen]
    at = [moving(p, 1, t, run.reach) if t else p for p, t, run in zip(places, taps, chosen, strict=True)]
    summed = [t for t in taps if t]
    result = b.generic(
        [(x, [batches, *group, c, *at]), (w, [*group, c, *summed, *phases, o])],
        b.fill(0, dtype, sizes),
        [f"d{i}" for i in range(len(sizes))],
        ["parallel"] * len(sizes) + ["reduction"] * (1 + len(summed)),
        multiply_add(dtype),
        'effc.op = "conv"',
    )
    return reshape(b, result, whole)


def _kernel(b: Builder, w: Tensor, chosen: Sequence[Run]) -> Tensor:
    """The taps of ``w`` [c, o, k…] that the ``chosen`` runs take: [c, taps…, phases…, o], of each only where there are several; the taps
    reversed, as a plain convolution reads its image.
    """
    n = len(chosen)
    wide = [i for i in range(n) if chosen[i].phases > 1]
    if all(run.taps == 1 for run in chosen):
        for i, run in enumerate(chosen):
            w = extract_slice(b, w, 2 + i, run.first, run.phases)
        w = reshape(b, w, (*w.sizes[:2], *(chosen[i].phases for i in wide)))
        return permute(b, w, [0, *range(2, w.rank), 1])
    deep = [i for i in range(n) if chosen[i].taps > 1]
    sizes = (w.sizes[0], *(chosen[i].taps for i in deep), *(chosen[i].phases for i in wide), w.sizes[1])

    def read(body: Body) -> Scalar:
        at = [body.loop_index(d) for d in range(len(sizes))]
        tap, phase = dict(zip(deep, at[1:], strict=False)), dict(zip(wide, at[1 + len(deep) :], strict=False))
        taps = []
        for i, run in enumerate(chosen):
            last = body.size(run.first + (run.taps - 1) * run.step)
            if i in phase:
                last = body.add(last, phase[i])
            taps.append(body.sub(last, body.mul(body.size(run.step), tap[i])) if i in tap else last)
        return body.extract(w, [at[0], at[-1], *taps])

    return b.pointwise([], sizes, w.dtype, read)
