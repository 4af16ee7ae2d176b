"""Borders that stay: a zero ``pad`` of known size is written once, when the arena is made, and never by a call.

Every call writes the same box inside such a buffer, so what lies around the box stays as it is. The buffer's memory may be shared by
buffers with the same box alone (the blocks of one stage of a network have equal ones). Other borders are filled by kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import copysign, prod

from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import ITEM_SIZE
from effc.compiler.pipeline.graph import Op

#: Bytes of a buffer beyond which its border is filled by kernels: next to what computes so much they take no time, and memory of
#: its own would cost more than that.
LARGEST = 8 * 1024 * 1024


@dataclass(frozen=True)
class Box:
    """The part of a buffer of ``sizes`` and ``strides`` that is written: ``inner`` elements a dim, from ``low`` on. All else is zero."""

    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[Expr, ...]
    low: tuple[Expr, ...]
    inner: tuple[Expr, ...]

    @staticmethod
    def of(pad: Op, strides: tuple[Expr, ...]) -> Box | None:
        """The box of a ``pad`` whose result has a buffer of its own; None where its border must be filled in each call."""
        result, source = pad.results[0], pad.operands[0]
        sizes = tuple(size.constant for size in result.sizes)
        known = tuple(n for n in sizes if n is not None)
        if len(known) < len(sizes) or prod(known) * ITEM_SIZE[result.dtype] > LARGEST or not _fills_with_zero(pad):
            return None
        return Box(result.dtype, known, strides, tuple(pad.attributes["low"]), source.sizes)


def _fills_with_zero(pad: Op) -> bool:
    """Whether the border's elements are zero in every bit."""
    assert pad.body is not None
    instr = pad.body.instrs[pad.body.yields[0]]
    value = instr.get("value")
    return instr.op == "constant" and value == 0 and copysign(1, value) > 0
