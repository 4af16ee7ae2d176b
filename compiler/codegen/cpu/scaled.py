"""Sums of integers, as floats again, and of 16-bit floats: ``sum * scale + bias`` rounds once instead of twice, and with a factor behind it
instead of three times.

Eager's sum of such integers is one of floats, rounded many times, and of 16-bit floats it rounds all that follows to 16 bits; what is
neither is computed as the model says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.ir.spec import Instr

#: Largest factor that scale and bias are multiplied by before the sum is known; neither overflows then where both are below 3e23.
MOST_FACTOR = 1e15
#: What may stand between a sum and its conversion: corrections for zero points.
_INTEGER = frozenset({"arith.addi", "arith.subi"})


@dataclass(frozen=True)
class Scaled:
    """``value * scale + bias``, by the numbers of instructions; ``value`` is the sum as a float."""

    value: int
    scale: int
    bias: int


def find(body: Sequence[Instr], at: int) -> Scaled | None:
    """What instruction ``at`` adds, where that is such a sum, scaled."""
    if body[at].op != "arith.addf" or body[at].dtype != "f32":
        return None
    for product, bias in _orders(body[at].args):
        if body[product].op != "arith.mulf":
            continue
        for value, scale in _orders(body[product].args):
            if _of_16_bits(body, value) or (body[value].op == "arith.sitofp" and _is_sum(body, body[value].args[0])):
                return Scaled(value, scale, bias)
    return None


def _orders(pair: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return pair, pair[::-1]


def _is_sum(body: Sequence[Instr], at: int) -> bool:
    """Whether the integer is a sum of products, or is computed from one."""
    if body[at].op in _INTEGER:
        return any(_is_sum(body, arg) for arg in body[at].args)
    return body[at].op == "contract"


def _of_16_bits(body: Sequence[Instr], at: int) -> bool:
    """Whether the float is a sum of products of 16-bit ones."""
    return body[at].op == "contract" and all(body[arg].op == "arith.extf" for arg in body[at].args)
