"""The lines of each stage of a block of images, found from its convolutions.

A convolution's first dims are the images and their height, as the model has them. What follows or precedes it and has rows of other
dims (a norm over the channels, a linear layer) has the lines of what it reads or stores.
"""

from __future__ import annotations

from collections.abc import Mapping

from effc.compiler.codegen.cpu.block.lines import Lines
from effc.compiler.ir.spec import KernelSpec


def lines_of(spec: KernelSpec) -> tuple[Lines, ...] | None:
    """Of each stage; None where no convolution says how many lines an image has."""
    between = {operand for stage in spec.stages[:-1] for operand in operands_of(stage, "store")}
    loaded = [operands_of(stage, "load") & between for stage in spec.stages]
    stored = [operands_of(stage, "store") & between for stage in spec.stages]
    found = [_natural(stage) for stage in spec.stages]
    for _ in spec.stages:
        known = {o: lines for lines, own in zip(found, stored, strict=True) if lines is not None for o in own}
        asked = {o: lines for lines, own in zip(found, loaded, strict=True) if lines is not None for o in own}
        for i, own in enumerate(found):
            if own is None:
                found[i] = _first(known, loaded[i]) or _first(asked, stored[i])
    lines = tuple(own for own in found if own is not None)
    return lines if len(lines) == len(found) else None


def _first(lines: Mapping[int, Lines], operands: set[int]) -> Lines | None:
    return next((lines[o] for o in sorted(operands) if o in lines), None)


def operands_of(stage: KernelSpec, op: str) -> set[int]:
    """That a stage loads or stores."""
    return {instr["operand"] for instr in stage.body if instr.op == op}


def _natural(stage: KernelSpec) -> Lines | None:
    """Of a convolution in two dimensions or more: its parallel dims are images (where there are several), height, width, and the channels
    and their groups, which its weight has too.
    """
    sizes = [d.size.constant for d in stage.dims if d.kind == "parallel"]
    if stage.template != "contraction" or None in sizes or len(sizes) < 4:
        return None
    loads = (instr for instr in stage.body if instr.op == "load")
    weights = [i["address"].variables() for i in loads if stage.operands[i["operand"]].role == "packed"]
    channels = weights[0] if weights else frozenset[str]()
    wide = [size for i, size in enumerate(sizes) if size is not None and size > 1 and f"d{i}" not in channels]
    return Lines(1, wide[0]) if len(wide) == 2 else Lines(wide[0], wide[1]) if len(wide) == 3 else None
