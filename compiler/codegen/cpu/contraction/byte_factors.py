"""Contractions of bytes, summed in i32."""

from __future__ import annotations

from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.sides import Side
from effc.compiler.codegen.cpu.target import Target


def is_bytes(nest: Nest) -> bool:
    """Whether unsigned bytes are multiplied by signed ones and summed in i32."""
    sides, body = (nest.left, nest.right), nest.spec.body
    if body[nest.contract].dtype != "i32" or any(nest.spec.operands[s.operand].dtype != "i8" for s in sides):
        return False
    widened = all(len(s.chain) == 1 and body[s.chain[0]].op in ("arith.extui", "arith.extsi") for s in sides)
    return widened and is_unsigned(nest, nest.left) != is_unsigned(nest, nest.right)


def is_unsigned(nest: Nest, side: Side) -> bool:
    """Whether the elements of a factor are widened as unsigned integers."""
    return any(nest.spec.body[i].op == "arith.extui" for i in side.chain)


def sums_bytes(target: Target) -> bool:
    """Whether ``vpdpbusd`` sums the products of four bytes in each of 16 lanes."""
    return target.vector_bytes == 64 and target.has("avx512_vnni")
