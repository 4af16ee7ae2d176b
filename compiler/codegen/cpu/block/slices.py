"""Slices of channels: where all stages after the first read, for a channel, that one alone, a few at a time go through all lines.

A line of a wide image with many channels fills L2 by itself (112 x 576: 258 KB); of a slice it has few. Before → after, 576 channels in 9
slices, which are images then, as `lines.Lines` has them::

    stage 0    d0: 112, d1: 112, d2: 576 | d3: 96      load x[10752*d0 + 96*d1 + d3], store a[64512*d0 + 576*d1 + d2]
               d0: 9, d1: 112, d2: 112, d3: 64 | d4    load x[10752*d1 + 96*d2 + d4], store a[802816*d0 + 7168*d1 + 64*d2 + d3]
    stage 1    depthwise, reads a likewise, stores y[64*d0 + 64512*d1 + 576*d2 + d3]

The first stage's input is read once for each slice. A last stage that sums over the channels sums those of one slice at a time (`sums`)::

    stage 2    d0: 112, d1: 112, d2: 96 | d3: 576      load y[64512*d0 + 576*d1 + d3], store z[10752*d0 + 96*d1 + d2]
               d0: 9, d1: 112, d2: 112, d3: 96 | d4: 64    load y[802816*d0 + 7168*d1 + 64*d2 + d4], z[10752*d1 + 96*d2 + d3] of each slice
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import prod

from effc.compiler.codegen.cpu.block.lines import split
from effc.compiler.codegen.cpu.block.sums import factor_of, summed_dim, walks
from effc.compiler.codegen.cpu.contraction.roles import drop_units, rename
from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.ir.spec import KernelSpec


def channels(stages: Sequence[KernelSpec], hidden: Collection[int]) -> int | None:
    """How many channels all stages have; None where one, but for a last one that sums over all of them, reads others than it stores, of
    what is ``hidden`` between them.
    """
    found = {_channels(drop_units(stage), hidden) for stage in stages[:-1]}
    last = drop_units(stages[-1])
    dim = summed_dim(last, hidden)
    found.add(_channels(last, hidden) if dim is None else last.dims[dim].size.constant)
    return found.pop() if len(found) == 1 else None


def sliced(stages: Sequence[KernelSpec], hidden: Collection[int], slices: int) -> tuple[KernelSpec, ...]:
    """The stages with so many slices of their `channels`, which they divide, as the first dim, and what is ``hidden`` slice by slice."""
    points: dict[int, int] = {}
    found: list[KernelSpec] = []
    for stage in map(drop_units, stages):
        dim = summed_dim(stage, hidden) if len(found) == len(stages) - 1 else None
        dim = _channel_dim(stage) if dim is None else dim
        assert dim is not None, "they have channels"
        for operand in _touched(stage, "store") & {*hidden}:
            points[operand] = prod(d.size.constant or 0 for d in stage.dims if d.kind == "parallel") // slices
        found.append(_cut(stage, dim, slices, points))
    return tuple(found)


def _cut(stage: KernelSpec, dim: int, slices: int, points: Mapping[int, int]) -> KernelSpec:
    """``stage`` with slices of ``dim`` as its first dim. ``points``: of a slice of each operand that lies slice by slice."""
    parted = split(stage, dim, (stage.dims[dim].size.constant or 0) // slices)
    order = [dim, *(i for i in range(len(parted.dims)) if i != dim)]
    first, *others = (parted.dims[i] for i in order)
    parted = rename(parted, order, {}, [replace(first, kind="parallel"), *others])
    inner = f"d{dim + 1}"
    body = tuple(
        replace(
            i,
            attributes=tuple(
                (k, _placed(v, inner, slices, points[i["operand"]]) if k == "address" else v) for k, v in i.attributes
            ),
        )
        if i.op in ("load", "store") and i["operand"] in points
        else i
        for i in parted.body
    )
    return replace(parted, body=body)


def _placed(address: Expr, inner: str, slices: int, points: int) -> Expr:
    """Where an element lies whose channel is ``inner`` of slice ``d0``, slices lying ``points`` elements apart."""
    at = address.substitute({inner: 0, "d0": 0})
    start = at.substitute(dict.fromkeys(at.variables(), 0)).constant or 0
    moved = const(start // slices)
    for name in sorted(at.variables()):
        factor = at.coefficient(name)
        moved += var(name) * ((factor.constant or 0) // slices if factor is not None else 0)
    return moved + var(inner) + var("d0") * points


def _channels(stage: KernelSpec, hidden: Collection[int]) -> int | None:
    dim = _channel_dim(stage)
    size = None if dim is None else stage.dims[dim].size.constant
    if dim is None or size is None:
        return None
    for instr in stage.body:
        if instr.op in ("load", "store") and instr["operand"] in hidden and not walks(instr["address"], dim, size):
            return None
    return size


def _channel_dim(stage: KernelSpec) -> int | None:
    """The parallel dim along which all results are contiguous."""
    stores = [i["address"] for i in stage.body if i.op == "store"]
    dims = (i for i, d in enumerate(stage.dims) if d.kind == "parallel")
    return next((i for i in dims if all(factor_of(a, f"d{i}") == 1 for a in stores)), None)


def _touched(stage: KernelSpec, op: str) -> set[int]:
    return {instr["operand"] for instr in stage.body if instr.op == op}
