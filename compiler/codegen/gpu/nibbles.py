"""Constant codes of up to four bits are read two a byte (``effc.runtime.nibbles``): such an operand has the role ``packed``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from effc.compiler.ir.expr import const, floordiv
from effc.compiler.ir.spec import KernelSpec

#: The derivation that packs them.
FUNCTION = "pack_nibbles"
_MOST_BITS = 4


def packed_codes(spec: KernelSpec, constant: Collection[int]) -> tuple[KernelSpec, dict[int, int]]:
    """``spec`` with those of its operands ``constant`` packed of which nothing but codes is read, and how many codes each holds."""
    found: dict[int, int] = {}
    for number in constant:
        size = spec.operands[number].size.constant
        loads = [i for i, instr in enumerate(spec.body) if instr.op == "load" and instr["operand"] == number]
        readers = [instr for instr in spec.body if set(instr.args) & set(loads)]
        codes = all(instr.op == "decode" and instr["bits"] <= _MOST_BITS for instr in readers)
        if loads and readers and codes and size is not None and not any(spec.body[i].args for i in loads):
            found[number] = size
    operands = tuple(
        replace(o, role="packed", size=floordiv(o.size + 1, const(2))) if i in found else o
        for i, o in enumerate(spec.operands)
    )
    return replace(spec, operands=operands), found
