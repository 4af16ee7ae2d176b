"""On a GPU: two products, of which the second alone reads what the first one makes, become one kernel.

Before → after, of a layer in two factors::

    k0: contraction   x, right → buffer 0
    k1: contraction   buffer 0, left → y

    k0: block         the same two as stages, x, right, left → y; what lies between never leaves a program of the grid

`codegen.gpu.pair` says which products can be such a kernel, and counts what it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from effc.compiler.codegen.gpu.pair.reading import read_pair
from effc.compiler.codegen.gpu.pair.schedule import saved
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.pipeline.blocks import joined
from effc.compiler.pipeline.dataflow import Dataflow
from effc.compiler.pipeline.kernels import Kernel, Site
from effc.compiler.pipeline.placement import Base


def fuse_pairs(
    kernels: Sequence[Kernel], constants: Collection[Base], is_sparse: Callable[[Site], bool], target: GpuTarget
) -> list[Kernel]:
    """``kernels`` in their order, each pair that is counted faster together in the place of its second. ``constants``: bases that no call
    changes. ``is_sparse``: whether zeros are known in what a site points at: such a kernel stays apart.
    """
    flow = Dataflow(kernels, constants)
    found: list[Kernel | None] = list(kernels)
    sparse = [any(map(is_sparse, kernel.sites)) for kernel in kernels]
    for first in range(len(kernels)):
        second = _only_reader(flow, first)
        if second is None or found[first] is not kernels[first] or sparse[first] or sparse[second]:
            continue
        made = _pair(kernels[first], kernels[second], target) if flow.shared((first, second)) is not None else None
        if made is not None:
            found[first], found[second] = None, made
    return [kernel for kernel in found if kernel is not None]


def _only_reader(flow: Dataflow, writer: int) -> int | None:
    """The kernel that alone reads what a product makes, itself one."""
    if flow.kernels[writer].spec.template != "contraction" or len(flow.writes[writer]) != 1:
        return None
    readers = flow.readers(flow.writes[writer][0], writer)
    return readers[0] if len(readers) == 1 and flow.kernels[readers[0]].spec.template == "contraction" else None


def _pair(first: Kernel, second: Kernel, target: GpuTarget) -> Kernel | None:
    """The kernel of both, where there is one and it is counted to be faster."""
    made = joined([first, second])
    pair = "" if made is None else read_pair(made.spec)
    return made if not isinstance(pair, str) and saved(pair, target) > 0 else None
