"""On a GPU: two products, of which the second alone reads what the first one makes, become one kernel.

Before → after, of a layer in two factors::

    k0: contraction   x, right → buffer 0
    k1: contraction   buffer 0, left → y

    k0: block         the same two as stages, x, right, left → y; what lies between never leaves a program of the grid

With a norm before them, which only the first product reads, all three (a transformer's MLP of few columns). `codegen.gpu.pair` says
which kernels can be one, and counts what it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from effc.compiler.codegen.gpu.pair.reading import read_pair
from effc.compiler.codegen.gpu.pair.schedule import saved
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.pipeline.blocks import joined
from effc.compiler.pipeline.dataflow import Dataflow
from effc.compiler.pipeline.placed import Kernel, Site
from effc.compiler.pipeline.placement import Base


def fuse_pairs(
    kernels: Sequence[Kernel], constants: Collection[Base], is_sparse: Callable[[Site], bool], target: GpuTarget
) -> list[Kernel]:
    """``kernels`` in their order, each pair that is counted faster together in the place of its second. ``constants``: bases that no call
    changes. ``is_sparse``: whether zeros are known in what a site points at: such a kernel stays apart.
    """
    flow = Dataflow(kernels, constants)
    apart = {i for i, kernel in enumerate(kernels) if any(map(is_sparse, kernel.sites))}
    found: list[Kernel | None] = list(kernels)
    for first in range(len(kernels)):
        second = _only_reader(flow, first) if kernels[first].spec.template == "contraction" else None
        if second is None:
            continue
        before = _norm_before(flow, first)
        offered = [((first, second) if before is None else (before, first, second)), (first, second)]
        free = [m for m in dict.fromkeys(offered) if all(found[i] is kernels[i] and i not in apart for i in m)]
        gains = {m: gain for m in free if (gain := _gain(flow, m, target)) is not None}
        if gains:
            members = max(gains, key=lambda m: gains[m][0])
            for member in members:
                found[member] = None
            found[second] = gains[members][1]
    return [kernel for kernel in found if kernel is not None]


def _only_reader(flow: Dataflow, writer: int) -> int | None:
    """The product that alone reads the one thing that a kernel makes."""
    if len(flow.writes[writer]) != 1:
        return None
    readers = flow.readers(flow.writes[writer][0], writer)
    return readers[0] if len(readers) == 1 and flow.kernels[readers[0]].spec.template == "contraction" else None


def _norm_before(flow: Dataflow, product: int) -> int | None:
    """The kernel of loops that reduces the rows which ``product`` alone reads."""
    for i in range(product):
        spec = flow.kernels[i].spec
        reduces = spec.template == "loops" and any(instr.op == "reduce" for instr in spec.body)
        if reduces and _only_reader(flow, i) == product:
            return i
    return None


def _gain(flow: Dataflow, members: tuple[int, ...], target: GpuTarget) -> tuple[float, Kernel] | None:
    """Cycles that one kernel of ``members`` is counted to save, and the kernel; None: there is none, or it saves nothing."""
    made = joined([flow.kernels[i] for i in members]) if flow.shared(members) is not None else None
    pair = "" if made is None else read_pair(made.spec)
    gain = 0.0 if isinstance(pair, str) else saved(pair, target)
    return (gain, made) if gain > 0 and made is not None else None
