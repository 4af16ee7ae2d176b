"""The kernels that ``effc bench --kernels`` measures: families of ops, each over a sweep of shapes."""

from __future__ import annotations

import torch

from effc.bench.kernels import attention, compressed, contractions, convolutions, moves, pointwise, quantized, rows
from effc.bench.kernels.kernel import Kernel
from effc.bench.models.entry import Case, Inputs, settle

#: By full name, ``family/shape``; the shape of a linear is KxN, of others that of the (first) input.
KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for part in (contractions, convolutions, attention, rows, pointwise, moves, quantized, compressed)
    for kernel in part.kernels()
}
FAMILIES = tuple(dict.fromkeys(kernel.family for kernel in KERNELS.values()))


def build(name: str, *, dense: bool = False) -> Case:
    """A kernel of ``KERNELS`` by its full name, or what eager runs in its place; weights are the same in every process."""
    kernel = KERNELS[name]
    kernel = kernel.dense if dense and kernel.dense is not None else kernel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        module = kernel.make()

    def inputs(seed: int, step: int) -> Inputs:
        return tuple(make(seed + i) for i, make in enumerate(kernel.inputs))

    return Case(name, settle(module), inputs)
