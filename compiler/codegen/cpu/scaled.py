"""Sums of integers as floats again, ``sum * scale + bias``: one rounding instead of two, and with a factor behind it of three.

Eager has multiplied and summed floats, so its sum is rounded many times before; only what is a sum of products in integers is computed so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.ir.spec import Instr

#: What may stand between a sum and its conversion: corrections for zero points.
_INTEGER = frozenset({"arith.addi", "arith.subi"})


@dataclass(frozen=True)
class Scaled:
    """``value * scale + bias``, by the numbers of instructions; ``value`` is the integer as a float."""

    value: int
    scale: int
    bias: int


def find(body: Sequence[Instr], at: int) -> Scaled | None:
    """What instruction ``at`` adds, where that is a sum in integers, scaled."""
    if body[at].op != "arith.addf" or body[at].dtype != "f32":
        return None
    for product, bias in _orders(body[at].args):
        if body[product].op != "arith.mulf":
            continue
        for value, scale in _orders(body[product].args):
            if body[value].op == "arith.sitofp" and _is_sum(body, body[value].args[0]):
                return Scaled(value, scale, bias)
    return None


def _orders(pair: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return pair, pair[::-1]


def _is_sum(body: Sequence[Instr], at: int) -> bool:
    """Whether the integer is a sum of products, or is computed from one."""
    if body[at].op in _INTEGER:
        return any(_is_sum(body, arg) for arg in body[at].args)
    return body[at].op == "contract"
