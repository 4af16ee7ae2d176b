"""Regions for people: what ``effc-opt --emit regions`` prints and lit tests match."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from effc.compiler.pipeline.dataflow import Dataflow
from effc.compiler.pipeline.placed import Kernel
from effc.compiler.pipeline.placement import Base
from effc.compiler.pipeline.regions import Region, find_regions


def regions_text(kernels: Sequence[Kernel], constants: Collection[Base]) -> str:
    """A line a region says what it reads and stores, and what nobody else reads; its parts stand below, indented::

    region input 0 -> output 0 keeps buffer 0, buffer 1, adds its entry
      k0 "contract+maximumf" at model.py:12
      k1 "conv" at model.py:13
      k2 "contract+addf" at model.py:14
    """
    lines = list[str]()

    def show(region: Region, indent: str) -> None:
        if not region.parts:
            lines.extend(_kernel(kernels, number, indent) for number in region.kernels)
            return
        kept = f" keeps {_list(region.between)}" if region.between else ""
        skip = ", adds its entry" if region.skip else ""
        lines.append(f"{indent}region {_list(region.inputs)} -> {_list([region.exit])}{kept}{skip}")
        inside = {i for part in region.parts for i in part.kernels}
        parts: dict[int, Region | None] = {part.kernels[0]: part for part in region.parts}
        parts.update((i, None) for i in region.kernels if i not in inside)
        for number, part in sorted(parts.items()):
            if part is None:
                lines.append(_kernel(kernels, number, indent + "  "))
            else:
                show(part, indent + "  ")

    for region in find_regions(Dataflow(kernels, constants)):
        show(region, "")
    return "".join(f"{line}\n" for line in lines) or "no region\n"


def _kernel(kernels: Sequence[Kernel], number: int, indent: str) -> str:
    kernel = kernels[number]
    return f'{indent}k{number} "{kernel.name}"{f" at {kernel.location}" if kernel.location else ""}'


def _list(bases: Sequence[Base]) -> str:
    return ", ".join(f"{base.kind} {base.index}" for base in bases)
