"""A last stage that reduces all lines of an image (the pool of squeeze-excitation): each line alone, and at the end the lines.

Before → after, of the mean of 56 lines of 56 pixels with 96 channels::

    stage      d0: 96 | d1: 56, d2: 56    load a[5376*d1 + 96*d2 + d0], reduce add, mul 1/3136, store y[d0]

    of a line  d0: 56, d1: 96 | d2: 56    load a[5376*d0 + 96*d2 + d1], reduce add, store partial[96*d0 + d1]
    at the end d0: 96 | d1: 56            load partial[96*d1 + d0], reduce add, mul 1/3136, store y[d0]

A line is a stage like any. Lines are reduced in their order, so that the result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from effc.compiler.codegen.cpu.block.lines import Lines, split
from effc.compiler.codegen.cpu.contraction.roles import drop_units, rename
from effc.compiler.codegen.cpu.loops.staging import inputs
from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand


@dataclass(frozen=True)
class Fold:
    """``line``: what is done for each line, ``end``: once all are done; over the block's operands and, ``partial``, one more."""

    line: KernelSpec
    end: KernelSpec
    partial: int


def fold(stage: KernelSpec, lines: Lines, between: Sequence[int], partial: int) -> Fold | None:
    """``stage`` in two steps, of which the first writes scratch memory, operand ``partial``; None where it does not reduce all ``lines``
    of an intermediate, one of the operands ``between``.
    """
    reduces = [i for i, instr in enumerate(stage.body) if instr.op == "reduce"]
    if stage.template != "loops" or len(reduces) != 1 or len(stage.body[reduces[0]].args) != 1:
        return None
    spec, (at,) = drop_units(stage), reduces
    sizes = [d.size.constant for d in spec.dims]
    if None in sizes or spec.body[at].dtype != "f32" or _stores_inside(spec):
        return None
    order = _order(spec, lines, between)
    if order is None:
        return None
    spec, images, height = order
    known = [d.size.constant or 0 for d in spec.dims]
    first = sum(d.kind == "parallel" for d in spec.dims)  # of the reduced dims, which is the height
    kept = [*images, height, *(i for i in range(first) if i not in images)]
    inner = [i for i in range(first, len(spec.dims)) if i != height]
    if not inner:  # lines of one pixel
        return None
    place = dict(zip(kept, range(len(kept)), strict=True))
    strides = [prod(known[i] for i in kept[n + 1 :]) for n in range(len(kept))]

    def address(dims: Sequence[int]) -> Expr:
        """Of the partial result, where ``dims`` are those of a nest."""
        return sum((var(f"d{n}") * strides[place[i]] for n, i in enumerate(dims)), const(0))

    size = prod(known[i] for i in kept)
    operands = (*spec.operands[:partial], Operand("f32", "scratch", const(size)))
    reduced = rename(spec, [*kept, *inner], {}, [_parallel(spec.dims[i]) for i in kept] + [spec.dims[i] for i in inner])
    line = _through(reduced, at)
    line = (*line, Instr("store", (len(line) - 1,), "", (("address", address(kept)), ("operand", partial))))
    outer = [*(i for i in kept if i != height), height]
    ended = rename(spec, outer, {f"d{i}": const(0) for i in inner}, [spec.dims[i] for i in outer])
    load = Instr("load", (), "f32", (("address", address(outer)), ("operand", partial)))
    return Fold(
        replace(reduced, operands=operands, body=line),
        replace(ended, operands=operands, body=_after(ended.body, at, load)),
        partial,
    )


def _stores_inside(spec: KernelSpec) -> bool:
    """Whether something is stored within the reduction; or gathered, which is not looked into."""
    parallel = sum(d.kind == "parallel" for d in spec.dims)
    gathers = any(v[0] == "v" for i in spec.body for _, e in i.attributes if isinstance(e, Expr) for v in e.variables())
    levels = zip(spec.body, spec.levels(), strict=True)
    return gathers or any(i.op == "store" and level > parallel for i, level in levels)


def _order(spec: KernelSpec, lines: Lines, between: Sequence[int]) -> tuple[KernelSpec, list[int], int] | None:
    """``spec``, where needed with the reduction over pixels split into lines and columns; which of its dims are images, and which is the
    height. None where it does not reduce all lines.
    """
    load = next((i for i in spec.body if i.op == "load" and i["operand"] in between), None)
    reduced = [i for i, d in enumerate(spec.dims) if d.kind == "reduction"]
    if load is None or not reduced:
        return None
    factors = [load["address"].coefficient(f"d{i}") for i in range(len(spec.dims))]
    steps = [-1 if f is None or f.constant is None else f.constant for f in factors]
    height = max(reduced, key=lambda i: steps[i])
    size = spec.dims[height].size.constant or 0
    images = sorted(
        (i for i, s in enumerate(steps) if s >= steps[height] * size and i != height), key=lambda i: -steps[i]
    )
    if min(steps) < 0 or size % lines.height or prod(spec.dims[i].size.constant or 0 for i in images) != lines.images:
        return None
    if any(spec.dims[i].kind == "reduction" for i in images):
        return None
    return spec if size == lines.height else split(spec, height, size // lines.height), images, height


def _parallel(dim: Dim) -> Dim:
    return replace(dim, kind="parallel")


def _through(spec: KernelSpec, at: int) -> tuple[Instr, ...]:
    """The instructions that number ``at`` needs, and itself."""
    needed, pending = {at}, [at]
    while pending:
        fresh = set(inputs(spec.body[pending.pop()])) - needed
        needed |= fresh
        pending.extend(fresh)
    return _picked(spec.body, sorted(needed), {})


def _after(body: Sequence[Instr], at: int, load: Instr) -> tuple[Instr, ...]:
    """What follows the reduction number ``at``, of which ``load`` is an operand now."""
    again = replace(body[at], args=(0,))
    needed, pending = {at}, [i for i, instr in enumerate(body) if instr.op == "store"]
    while pending:
        number = pending.pop()
        if number not in needed:
            needed.add(number)
            pending.extend(inputs(body[number]))
    picked = _picked(body, sorted(needed), {at: again}, shift=1)
    return (load, *picked)


def _picked(body: Sequence[Instr], kept: Sequence[int], instead: dict[int, Instr], shift: int = 0) -> tuple[Instr, ...]:
    """The instructions ``kept``, numbered anew from ``shift`` on; those of ``instead`` as they are given."""
    number = {old: new + shift for new, old in enumerate(kept)}
    return tuple(instead.get(i) or replace(body[i], args=tuple(number[a] for a in body[i].args)) for i in kept)
