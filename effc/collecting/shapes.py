"""A spread of layers to collect from: families of ops at random sizes, tidy and odd ones, large and small."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effc.bench.kernels.kernel import Function
from effc.bench.models.entry import settle

#: Multiply-adds and elements of a layer at most: some tens of milliseconds on a core.
_MOST_WORK, _MOST_ELEMENTS = 2e9, 1 << 23
_PLANES = (7, 13, 14, 17, 28, 35, 56, 65)


@dataclass(frozen=True)
class Subject:
    """Something to compile. ``name``: what it is, the same in every collection; ``family``: what can be held out; ``make()``: the
    module and its inputs; ``passes``: what it is compiled with, as `Options.passes` has them.
    """

    name: str
    family: str
    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
    passes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def spread(families: Sequence[str], seed: int) -> Iterator[Subject]:
    """Endless, in turn of each of ``families``; the same for the same seed."""
    return (layer_at(families, seed, index) for index in itertools.count())


def layer_at(families: Sequence[str], seed: int, index: int) -> Subject:
    """One of the spread, by its place."""
    turn, which = divmod(index, len(families))
    return FAMILIES[families[which]](random.Random(f"{families[which]} {seed} {turn}"))


def _linear(draw: random.Random) -> Subject:
    """Constant weights; one row as in decoding, to many."""
    m, k, n = _rows(draw), _channels(draw, 4096), _channels(draw, 8192)
    while m * k * n > _MOST_WORK or k * n > _MOST_ELEMENTS:
        m, k, n = max(m // 2, 1), max(k // 2, 8), max(n // 2, 8)
    dtype = _dtype(draw)
    after = draw.choice(("", "relu", "gelu"))
    return _subject(
        "linear", f"{m}x{k}x{n}", dtype, lambda: nn.Sequential(nn.Linear(k, n), *_activation(after)), ((m, k),), after
    )


def _gemm(draw: random.Random) -> Subject:
    """Both factors come as inputs; batched as well."""
    batch, m, k, n = draw.choice((1, 1, 4, 12)), _rows(draw), _channels(draw, 1024), _channels(draw, 1024)
    while batch * m * k * n > _MOST_WORK:
        m, k, n = max(m // 2, 1), max(k // 2, 8), max(n // 2, 8)
    shapes = ((batch, m, k), (batch, k, n))
    return _subject("gemm", f"{batch}x{m}x{k}x{n}", _dtype(draw), partial(Function, torch.matmul), shapes)


def _conv(draw: random.Random) -> Subject:
    side, kernel, stride = draw.choice(_PLANES), draw.choice((1, 1, 3, 3, 3, 5)), draw.choice((1, 1, 1, 2))
    channels, out = _channels(draw, 512), _channels(draw, 1024)
    while side * side * kernel * kernel * channels * out > _MOST_WORK:
        channels, out = max(channels // 2, 3), max(out // 2, 8)
    make = partial(nn.Conv2d, channels, out, kernel, stride, kernel // 2)
    after = draw.choice(("", "relu"))
    detail = f"{kernel} stride {stride} {channels}->{out}x{side}"
    shape = ((1, channels, side, side),)
    return _subject("conv", detail, _dtype(draw), lambda: nn.Sequential(make(), *_activation(after)), shape, after)


def _narrow(draw: random.Random) -> Subject:
    """Layers of few outputs, whose columns come in half vectors on some CPUs: 1x1 convolutions and linear layers of small models."""
    out = 8 * draw.choice((1, 3, 3, 5, 5, 7, 9))
    after = draw.choice(("", "relu"))
    if draw.random() < 0.3:
        m, k = _rows(draw), _channels(draw, 1024)
        make: Callable[[], nn.Module] = partial(nn.Linear, k, out)
        detail, shape = f"{m}x{k}x{out}", (m, k)
        return _subject(
            "narrow", detail, "float32", lambda: nn.Sequential(make(), *_activation(after)), (shape,), after
        )
    side, kernel, channels = draw.choice(_PLANES), draw.choice((1, 1, 1, 3)), _channels(draw, 256)
    make = partial(nn.Conv2d, channels, out, kernel, 1, kernel // 2)
    detail = f"{kernel} {channels}->{out}x{side}"
    image = ((1, channels, side, side),)
    return _subject("narrow", detail, "float32", lambda: nn.Sequential(make(), *_activation(after)), image, after)


def _depthwise(draw: random.Random) -> Subject:
    side, kernel, stride = draw.choice(_PLANES), draw.choice((3, 3, 5, 7)), draw.choice((1, 1, 2))
    channels = _channels(draw, 1024)
    make = partial(nn.Conv2d, channels, channels, kernel, stride, kernel // 2, groups=channels)
    shape = ((1, channels, side, side),)
    return _subject("depthwise", f"{kernel} stride {stride} {channels}x{side}", _dtype(draw), make, shape)


_POINTWISE: Mapping[str, tuple[Callable[..., Tensor], int]] = {
    "add": (torch.add, 2),
    "gelu": (F.gelu, 1),
    "silu·mul": (lambda a, b: F.silu(a) * b, 2),
    "exp": (torch.exp, 1),
    "chain": (lambda a, b: torch.sigmoid(a * b + 1.5).clamp(0.1, 0.9) - a.abs(), 2),
    "transposed add": (lambda a, b: a + b.transpose(-1, -2).contiguous().transpose(-1, -2), 2),
}


def _pointwise(draw: random.Random) -> Subject:
    name = draw.choice(list(_POINTWISE))
    function, inputs = _POINTWISE[name]
    rows, columns = _rows(draw), _channels(draw, 8192)
    shapes = ((rows, columns),) * inputs
    return _subject("pointwise", f"{name} {rows}x{columns}", _dtype(draw), partial(Function, function), shapes)


_REDUCTIONS: Mapping[str, Callable[[int], nn.Module]] = {
    "softmax": lambda columns: nn.Softmax(-1),
    "layer norm": nn.LayerNorm,
    "rms norm": nn.RMSNorm,
    "sum": lambda columns: Function(lambda x: x.sum(-1)),
    "column sum": lambda columns: Function(lambda x: x.sum(0)),
    "argmax": lambda columns: Function(lambda x: x.argmax(-1)),
}


def _reduction(draw: random.Random) -> Subject:
    name = draw.choice(list(_REDUCTIONS))
    rows, columns = _rows(draw), _channels(draw, 8192)
    make = partial(_REDUCTIONS[name], columns)
    return _subject("reduction", f"{name} {rows}x{columns}", _dtype(draw), make, ((rows, columns),))


def _attention(draw: random.Random) -> Subject:
    heads, size = draw.choice((2, 4, 9, 12)), draw.choice((32, 40, 64, 64, 80, 128))
    keys = draw.choice((33, 64, 128, 197, 256, 384, 513))
    queries = draw.choice((1, keys, keys))
    causal = queries == keys and draw.random() < 0.5
    function = partial(F.scaled_dot_product_attention, is_causal=causal)
    shapes = ((1, heads, queries, size), (1, heads, keys, size), (1, heads, keys, size))
    detail = f"{heads}x{queries}x{keys}x{size}{' causal' if causal else ''}"
    return _subject("attention", detail, _dtype(draw), partial(Function, function), shapes)


def _low_rank(draw: random.Random) -> Subject:
    """A linear layer, or a convolution, as two factors."""
    rank_share = draw.choice((0.06, 0.125, 0.25, 0.4))
    if draw.random() < 0.6:
        m, k, n = _rows(draw), _channels(draw, 2048), _channels(draw, 4096)
        while m * k * n > _MOST_WORK or k * n > _MOST_ELEMENTS:
            m, k, n = max(m // 2, 1), max(k // 2, 8), max(n // 2, 8)
        rank = _rank(min(k, n), rank_share)
        return _subject(
            "low_rank",
            f"{m}x{k}x{rank}x{n}",
            _dtype(draw),
            lambda: nn.Sequential(nn.Linear(k, rank, bias=False), nn.Linear(rank, n)),
            ((m, k),),
        )
    side, kernel, stride = draw.choice(_PLANES), draw.choice((1, 3, 3, 5)), draw.choice((1, 1, 2))
    channels, out = _channels(draw, 512), _channels(draw, 512)
    while side * side * kernel * kernel * channels * out * rank_share > _MOST_WORK:
        channels, out = max(channels // 2, 3), max(out // 2, 8)
    rank = _rank(min(channels, out), rank_share)
    first = partial(nn.Conv2d, channels, rank, kernel, stride, kernel // 2, bias=False)
    detail = f"{kernel} stride {stride} {channels}->{rank}->{out}x{side}"
    return _subject(
        "low_rank",
        detail,
        "float32",
        lambda: nn.Sequential(first(), nn.Conv2d(rank, out, 1)),
        ((1, channels, side, side),),
    )


def _rank(most: int, share: float) -> int:
    """Ranks fill vectors, where there are as many."""
    return max(round(most * share / 16) * 16, min(most, 8))


#: Blocks of zeros, outputs x input channels, and shares of the weight that are zero.
_ZEROS: Sequence[tuple[tuple[int, int], tuple[float, ...]]] = (
    ((1, 1), (0.7, 0.8, 0.9, 0.95)),
    ((4, 1), (0.6, 0.75, 0.9)),
    ((16, 1), (0.5, 0.7, 0.9)),
    ((1, 16), (0.5, 0.7, 0.9)),
)


def _sparse(draw: random.Random) -> Subject:
    """A layer whose weight holds zeros, one by one or in blocks."""
    block, shares = draw.choice(_ZEROS)
    share = draw.choice(shares)
    if draw.random() < 0.5:
        m, k, n = _rows(draw), _channels(draw, 1024), _channels(draw, 2048)
        make: Callable[[], nn.Module] = partial(nn.Linear, k, n)
        found = _subject("sparse", f"{m}x{k}x{n}", "float32", make, ((m, k),))
    else:
        side, kernel = draw.choice(_PLANES), draw.choice((1, 1, 1, 3))
        channels, out = _channels(draw, 512), _channels(draw, 512)
        while side * side * kernel * kernel * channels * out > _MOST_WORK:
            channels, out = max(channels // 2, 16), max(out // 2, 16)
        make = partial(nn.Conv2d, channels, out, kernel, 1, kernel // 2)
        found = _subject("sparse", f"{kernel} {channels}->{out}x{side}", "float32", make, ((1, channels, side, side),))
    name = f"{found.name} {block[0]}x{block[1]} {share:g} zeros"

    def pruned() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        module, inputs = found.make()
        assert isinstance(module, nn.Module)
        _put_zeros(module, block, share)
        return module, inputs

    return replace(found, name=name, make=pruned, passes={"sparsity": {"pattern": "existing"}})


@torch.no_grad()
def _put_zeros(module: nn.Module, block: tuple[int, int], share: float) -> None:
    """Random blocks of ``[output, input channel]`` become zeros, at each position of a window."""
    draw = torch.Generator().manual_seed(1)
    for weight in (p for p in module.parameters() if p.dim() > 1):
        rows, columns = (-(-size // by) for size, by in zip(weight.shape[:2], block, strict=True))
        kept = torch.rand(rows, columns, *weight.shape[2:], generator=draw) >= share
        mask = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        weight.mul_(mask[: weight.shape[0], : weight.shape[1]])


FAMILIES: Mapping[str, Callable[[random.Random], Subject]] = {
    "linear": _linear,
    "gemm": _gemm,
    "conv": _conv,
    "depthwise": _depthwise,
    "pointwise": _pointwise,
    "reduction": _reduction,
    "attention": _attention,
    "low_rank": _low_rank,
    "sparse": _sparse,
    "narrow": _narrow,
}


def _subject(
    family: str,
    detail: str,
    dtype: str,
    make: Callable[[], nn.Module],
    shapes: Sequence[tuple[int, ...]],
    after: str = "",
) -> Subject:
    name = f"{family}/{detail}{' ' + after if after else ''} {dtype}"

    def build() -> tuple[nn.Module, tuple[Tensor, ...]]:
        kind: torch.dtype = getattr(torch, dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = settle(make()).to(kind)
            return module, tuple(torch.randn(shape).to(kind) for shape in shapes)

    return Subject(name, family, build)


def _activation(name: str) -> list[nn.Module]:
    kinds: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}
    return [kinds[name]()] if name else []


def _rows(draw: random.Random) -> int:
    """From one to a thousand: one often, powers of two, and what is neither."""
    kind = draw.random()
    if kind < 0.2:
        return 1
    if kind < 0.6:
        return 1 << draw.randint(1, 10)
    return round(float(2 ** draw.uniform(1, 10)))


def _channels(draw: random.Random, most: int) -> int:
    """Mostly multiples of 16 or 64; else odd."""
    size = 2 ** draw.uniform(4, most.bit_length() - 1)
    step = draw.choice((64, 64, 16, 16, 1))
    return max(round(size / step) * step, step if step > 1 else 3) | (step == 1)


def _dtype(draw: random.Random) -> str:
    return "bfloat16" if draw.random() < 0.2 else "float32"
