"""Lines: what a block's stages have in common, whatever each of them computes.

A line of a stage is what it does for one line of an image (all columns and channels of one height), or for one row of a matrix. The first
dimensions of its nest, in row-major order, are made to number the lines, and every intermediate lies line after line: so a run of lines of
a stage is a run of its units, and asks for a run of lines of what it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from effc.compiler.codegen.cpu.contraction.borders import Border
from effc.compiler.codegen.cpu.contraction.roles import drop_units
from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.ir.spec import Instr, KernelSpec


@dataclass(frozen=True)
class Lines:
    """``images`` of ``height`` lines each (a matrix is one image)."""

    images: int
    height: int

    @property
    def count(self) -> int:
        return self.images * self.height


@dataclass(frozen=True)
class Between:
    """Where an intermediate lies: ``lines``, ``stride`` elements apart; ``operand`` of the block. ``shown``: it is a result too, so all of
    it lies outside of the block; else a thread has some lines of it.
    """

    operand: int
    lines: Lines
    stride: int
    shown: bool = False


@dataclass(frozen=True)
class Reach:
    """Line ``l`` of a stage touches the lines ``step * l + low`` to ``step * l + high`` of an intermediate, where these exist."""

    step: int
    low: int
    high: int


def lined(spec: KernelSpec, lines: Lines) -> tuple[KernelSpec, int] | str:
    """``spec`` without dims of size 1, and how many of its first dims number ``lines``; or the reason why none do.

    A dim of rows of several lines is split: ``d0`` of 3136 becomes ``56*d0 + d1`` for 56 lines.
    """
    spec = drop_units(spec)
    found = 1
    for i, dim in enumerate(spec.dims):
        if found == lines.count:
            return spec, i
        size = dim.size.constant
        if size is None or dim.kind != "parallel":
            break
        if (found * size) % lines.count == 0 and found * size > lines.count and lines.count % found == 0:
            return split(spec, i, found * size // lines.count), i + 1
        if lines.count % (found * size):
            break
        found *= size
    return (
        (spec, len(spec.dims))
        if found == lines.count
        else "a stage whose first dimensions are not the lines of the others"
    )


def split(spec: KernelSpec, at: int, inner: int) -> KernelSpec:
    """``spec`` with dim ``at`` written as two, the second of size ``inner``."""
    first = {f"d{i}": var(f"t{i + (i > at)}") for i in range(len(spec.dims))}
    first[f"d{at}"] = var(f"t{at}") * inner + var(f"t{at + 1}")
    size = spec.dims[at].size.constant or 0
    halves = (replace(spec.dims[at], size=const(n)) for n in (size // inner, inner))
    dims = (*spec.dims[:at], *halves, *spec.dims[at + 1 :])
    ranges = {f"t{i}": d.size for i, d in enumerate(dims)}
    second = {f"t{i}": var(f"d{i}") for i in range(len(dims))}

    def rewrite(value: object) -> object:
        return value.substitute(first, ranges).substitute(second) if isinstance(value, Expr) else value

    body = tuple(Instr(i.op, i.args, i.dtype, tuple((n, rewrite(v)) for n, v in i.attributes)) for i in spec.body)
    return KernelSpec(spec.template, dims, spec.operands, body, spec.symbols, spec.attributes, spec.schedule)


def reach(
    spec: KernelSpec, first: int, own: Lines, address: Expr, between: Between, borders: Sequence[Border] = ()
) -> Reach | str:
    """The lines of ``between`` that the access at ``address`` touches, of a nest whose ``first`` dims number its ``own`` lines;
    ``borders``: where it reads nothing. Or the reason why these are not whole lines, or not in order.
    """
    unlike = "a stage reads other lines than the one before stores"
    known = [_known(address.coefficient(f"d{i}")) for i in range(len(spec.dims))]
    start = _known(address.substitute({f"d{i}": 0 for i in range(len(spec.dims))}))
    factors = [f for f in known if f is not None and f >= 0]
    step = _step(spec, first, own, factors, between) if len(factors) == len(known) else None
    if step is None or start is None:
        return unlike
    stride, by_tap, places = between.stride, {b.tap: b for b in borders}, {b.place for b in borders}
    low = high = most = 0
    for i in range(first, len(spec.dims)):
        size, factor, border = spec.dims[i].size.constant, factors[i], by_tap.get(i)
        if size is None:
            return unlike
        if border is not None and border.size == between.lines.height and factor == border.reach * stride:
            if own.height > 1 and border.step != step:
                return unlike
            start -= border.offset * stride
            low, high = low + border.offset, high + border.offset + border.reach * (size - 1)
        elif border is not None:  # along a line: what it leaves out lies outside of it
            each = factor // border.reach
            start, most = start - border.offset * each, most + (border.size - 1) * each
        elif factor and factor % stride == 0:
            high += factor // stride * (size - 1)
        elif i not in places:
            most += factor * (size - 1)
    offset, least = divmod(start, stride)
    return unlike if least + most >= stride else Reach(step, low + offset, high + offset)


def footprint(spec: KernelSpec, first: int, address: Expr) -> tuple[object, ...] | None:
    """Which elements the access at ``address`` touches, line by line, of a nest whose ``first`` dims number its lines: equal for two that
    touch the same. None where that is not a plain sum over the dims.
    """
    known = [_known(address.coefficient(f"d{i}")) for i in range(len(spec.dims))]
    start = _known(address.substitute({f"d{i}": 0 for i in range(len(spec.dims))}))
    walks = [(f, d.size.constant) for f, d in zip(known, spec.dims, strict=True) if f is not None and d.size.constant]
    if start is None or len(walks) < len(known):
        return None
    inner = sorted((f, n or 0) for f, n in walks[first:] if f)
    return start, *_fewest((f, n or 0) for f, n in reversed(walks[:first])), None, *_fewest(inner)


def _fewest(walks: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Steps and counts of nested walks, the innermost first, with those made one that step on where the one inside them ends."""
    found: list[tuple[int, int]] = []
    for step, count in walks:
        if found and found[-1][0] * found[-1][1] == step:
            found[-1] = (found[-1][0], found[-1][1] * count)
        else:
            found.append((step, count))
    return found


def _known(value: Expr | None) -> int | None:
    return None if value is None else value.constant


def _step(spec: KernelSpec, first: int, own: Lines, factors: Sequence[int], between: Between) -> int | None:
    """Lines of ``between`` from one line of a nest to the next; None where they do not follow each other."""
    sizes = [d.size.constant or 0 for d in spec.dims[:first]]
    height, stride = between.lines.height, between.stride
    if own.images != between.lines.images or prod(sizes) != own.count:
        return None
    step, rest = divmod(factors[first - 1], stride) if own.height > 1 else (1, 0)
    if rest or step < 1:
        return None
    for i, size in enumerate(sizes):
        inside = prod(sizes[i + 1 :])
        if inside % own.height == 0:
            expected = inside // own.height * height * stride
        elif size * inside > own.height and (step != 1 or height != own.height):
            return None  # from image to image in one dim, whose lines do not lie so
        else:
            expected = inside * step * stride
        if factors[i] != expected:
            return None
    return step
