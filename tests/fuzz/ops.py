"""The statements that a program may hold, each drawn at random against the variables at hand.

An op draws its text; whether it is valid is found by running it (``generate.py``). ``exact`` values are those that
every correct implementation computes to the last bit (inputs, moves, comparisons, integers): only they may reach an
op with a jump (a comparison, a rounding, an index), where one ulp of difference would change the result entirely.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from . import templates


@dataclass(frozen=True)
class Draw:
    """One drawn statement. ``exact``: its result is, if its operands are. ``update``: it writes into that variable."""

    text: str
    exact: bool = False
    update: str = ""


class NoOperand(Exception):
    """No variable at hand fits the op; another op is drawn."""


def _always(tensor: Tensor) -> bool:
    return True


class Chooser:
    """Random choices over the variables: ``tensors`` at the first size, ``is_exact`` by name."""

    def __init__(self, rng: Random, tensors: dict[str, Tensor], is_exact: dict[str, bool], dynamic: bool) -> None:
        self.rng, self.tensors, self.is_exact, self.dynamic = rng, tensors, is_exact, dynamic

    def any(self, test: Callable[[Tensor], bool] = _always, exact: bool = False) -> str:
        """A variable, later ones likelier; NoOperand where none passes."""
        fitting = [n for n, t in self.tensors.items() if test(t) and (not exact or self.is_exact[n])]
        if not fitting:
            raise NoOperand
        return fitting[min(len(fitting) - 1, int(len(fitting) * self.rng.random() ** 0.6))]

    def floating(self, ndim: int = 0, exact: bool = False) -> str:
        return self.any(lambda t: t.is_floating_point() and t.ndim >= ndim, exact)

    def dim(self, name: str) -> int:
        """A dimension, counted from either end."""
        ndim = self.tensors[name].ndim
        if ndim == 0:
            raise NoOperand
        return self.rng.randrange(-ndim, ndim)

    def partner(self, name: str, test: Callable[[Tensor], bool] = _always, exact: bool = False) -> str:
        """A variable that broadcasts with ``name``."""
        shape = self.tensors[name].shape

        def fits(t: Tensor) -> bool:
            pairs = zip(reversed(shape), reversed(t.shape), strict=False)
            return test(t) and all(a == b or 1 in (a, b) for a, b in pairs)

        return self.any(fits, exact)

    def fill(self, texts: tuple[str, ...], v: str, w: str = "") -> str:
        """One of ``texts`` with its places filled."""
        text = self.rng.choice(texts)
        rank = self.tensors[v].ndim
        d, e = (self.rng.randrange(-rank, rank) if rank else 0 for _ in range(2))
        return text.format(v=v, w=w or v, d=d, e=e, k=self.rng.random() < 0.5, r=rank - 2)


Op = Callable[[Chooser], Draw]


def _is_integer(t: Tensor) -> bool:
    return not t.is_floating_point()


def _is_bool(t: Tensor) -> bool:
    return t.dtype == torch.bool


def _is_number(t: Tensor) -> bool:
    return t.dtype != torch.bool


def _has_rank(t: Tensor) -> bool:
    return t.ndim >= 1


def unary(c: Chooser) -> Draw:
    return Draw(c.fill(templates.UNARY, c.floating()))


def exact_unary(c: Chooser) -> Draw:
    return Draw(c.fill(templates.EXACT_UNARY, c.any(_is_number)), exact=True)


def jump(c: Chooser) -> Draw:
    return Draw(c.fill(templates.JUMP, c.floating(exact=True)), exact=True)


def binary(c: Chooser) -> Draw:
    v = c.any(_is_number)
    return Draw(c.fill(templates.BINARY, v, c.partner(v)))


def exact_binary(c: Chooser) -> Draw:
    v = c.any()
    return Draw(c.fill(templates.EXACT_BINARY, v, c.partner(v)), exact=True)


def comparison(c: Chooser) -> Draw:
    v = c.any(exact=True)
    return Draw(c.fill(templates.COMPARISON, v, c.partner(v, exact=True)), exact=True)


def integer(c: Chooser) -> Draw:
    v = c.any(_is_integer)
    return Draw(c.fill(templates.INTEGER, v, c.partner(v, _is_integer)), exact=True)


def where(c: Chooser) -> Draw:
    v = c.any()
    m, w = c.partner(v, _is_bool), c.partner(v)
    return Draw(c.rng.choice((f"torch.where({m}, {v}, {w})", f"{v}.masked_fill({m}, 0.5)")), exact=True)


def cast(c: Chooser) -> Draw:
    dtype = c.rng.choice(("float32", "float64", "bfloat16", "int64", "int32", "bool"))
    if dtype in ("float32", "float64", "bfloat16"):
        return Draw(f"{c.any()}.to(torch.{dtype})", exact=True)
    v = c.any(exact=True)
    if c.tensors[v].is_floating_point() and not bool(c.tensors[v].isfinite().all()):
        raise NoOperand  # what a NaN becomes as an integer is undefined
    return Draw(f"{v}.to(torch.{dtype})", exact=True)


def reduction(c: Chooser) -> Draw:
    return Draw(c.fill(templates.REDUCTION, c.floating(1)))


def exact_reduction(c: Chooser) -> Draw:
    return Draw(c.fill(templates.EXACT_REDUCTION, c.any(_has_rank, exact=True)), exact=True)


def normalization(c: Chooser) -> Draw:
    return Draw(c.fill(templates.NORMALIZATION, c.floating(1)))


def matmul(c: Chooser) -> Draw:
    v = c.floating(2)
    inner, dtype = c.tensors[v].shape[-1], c.tensors[v].dtype
    mates = [n for n, t in c.tensors.items() if t.dtype == dtype and inner in t.shape[-2:]]
    w = c.rng.choice(mates)
    return Draw(c.fill(templates.MATMUL, v, w))


def convolution(c: Chooser) -> Draw:
    """Of finite numbers: beside an infinite one, padding of the image or of its channels is NaN or not, as eager's algorithm for the
    size has it. The inputs of another seed are infinite elsewhere, so all tensors are finite.
    """
    if not all(bool(t.isfinite().all()) for t in c.tensors.values()):
        raise NoOperand

    def fits(t: Tensor) -> bool:
        return t.is_floating_point() and t.ndim in (3, 4) and t.shape[1] > 0

    v = c.any(fits)
    like = c.tensors[v]
    if c.rng.random() < 0.6:
        return Draw(c.fill(templates.OWN_WINDOWS, v))
    w = c.any(lambda t: fits(t) and t.dtype == like.dtype and t.ndim == like.ndim and t.shape[1] == like.shape[1])
    stride, padding, dilation = c.rng.choice((1, 2)), c.rng.choice((0, 1, 2)), c.rng.choice((1, 1, 2))
    return Draw(f"F.conv{like.ndim - 2}d({v}, {w}, stride={stride}, padding={padding}, dilation={dilation})")


def view(c: Chooser) -> Draw:
    texts = templates.VIEW if c.dynamic else templates.VIEW + templates.STATIC_VIEW
    return Draw(c.fill(texts, c.any(_has_rank)), exact=True)


def joined(c: Chooser) -> Draw:
    v = c.any(_has_rank)
    return Draw(c.fill(templates.JOINED, v, c.partner(v)), exact=True)


def _indices(c: Chooser) -> tuple[str, str]:
    v = c.any(lambda t: t.ndim >= 1 and t.shape[0] > 0)
    return v, c.any(lambda t: t.dtype == torch.int64 and 0 < t.numel() <= 64)


def indexed(c: Chooser) -> Draw:
    return Draw(c.fill(templates.INDEXED, *_indices(c)), exact=True)


def accumulated(c: Chooser) -> Draw:
    return Draw(c.fill(templates.ACCUMULATED, *_indices(c)))


def created(c: Chooser) -> Draw:
    return Draw(c.fill(templates.CREATED, c.any(_has_rank)), exact=True)


def update(c: Chooser) -> Draw:
    v = c.any()
    if c.rng.random() < 0.2:
        return Draw(f"{v}.masked_fill_({c.partner(v, _is_bool)}, 1)", exact=True, update=v)
    exact = c.rng.random() < 0.5
    return Draw(c.fill(templates.EXACT_UPDATE if exact else templates.UPDATE, v, c.partner(v)), exact, v)


#: How often each is drawn.
WEIGHTS: dict[Op, int] = {
    unary: 12,
    exact_unary: 4,
    jump: 4,
    binary: 14,
    exact_binary: 3,
    comparison: 4,
    integer: 4,
    where: 4,
    cast: 5,
    reduction: 10,
    exact_reduction: 5,
    normalization: 7,
    matmul: 10,
    convolution: 10,
    view: 14,
    joined: 5,
    indexed: 6,
    accumulated: 3,
    created: 2,
    update: 6,
}
