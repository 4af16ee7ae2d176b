"""Factors that are codes: integers of few bits, less a zero point, times a scale."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.ir.expr import Call, Expr, var
from effc.compiler.ir.spec import KernelSpec

#: Groups of other sizes are no whole blocks of a sum.
_LEAST_GROUP = 16


@dataclass(frozen=True)
class Codes:
    """``value``: an integer of at most 9 bits and a sign, in f32. ``scale``: what multiplies it, None: nothing. ``group``: steps of the
    innermost sum, a multiple of `_LEAST_GROUP` and a power of two, that share a scale; 0: all do.
    """

    value: int
    scale: int | None
    group: int


def read_codes(spec: KernelSpec, value: int) -> Codes | None:
    """``value`` as codes, by the form that `effc.compiler.ir.spec` gives; None: it is none, or its scale differs from step to step."""
    instr, scale = spec.body[value], None
    if instr.op == "arith.mulf":
        value, scale = instr.args
        instr = spec.body[value]
    inner = value
    if instr.op == "arith.subf":
        inner, zero = instr.args
        if not _is_byte(spec, zero):
            return None
    if not _is_byte(spec, inner):
        return None
    group = 0 if scale is None else _group_of(spec, scale)
    return None if group is None else Codes(value, scale, group)


def _is_byte(spec: KernelSpec, value: int) -> bool:
    """Whether an instruction is an integer of 8 bits."""
    instr = spec.body[value]
    if instr.op == "decode":
        return not instr["codebook"]
    return instr.op in ("arith.sitofp", "arith.uitofp") and spec.body[instr.args[0]].dtype == "i8"


def _group_of(spec: KernelSpec, scale: int) -> int | None:
    """0 where a scale does not vary along sums, the size of its groups along the innermost, or None: neither."""
    summed = {f"d{i}" for i, d in enumerate(spec.dims) if d.kind == "reduction"}
    last = f"d{len(spec.dims) - 1}"
    groups: set[int] = set()
    pending = [scale]
    while pending:
        instr = spec.body[pending.pop()]
        pending += instr.args
        for _, e in instr.attributes:
            if isinstance(e, Expr) and summed & e.variables():
                found = _divisor(e, last)
                if found is None or summed & e.variables() != {last}:
                    return None
                groups.add(found)
    if not groups:
        return 0
    (group,) = groups if len(groups) == 1 else (0,)
    return group if group >= _LEAST_GROUP and group & (group - 1) == 0 else None


def _divisor(e: Expr, name: str) -> int | None:
    """By which number an address divides a variable, where it does nothing else with it."""
    found: set[int | None] = set()
    for monomial, _ in e.terms:
        for atom in monomial:
            if isinstance(atom, Call):
                if name in atom.lhs.variables() | atom.rhs.variables():
                    found.add(atom.rhs.constant if atom.fn == "//" and atom.lhs == var(name) else None)
            elif atom.name == name:
                found.add(None)
    return next(iter(found)) if len(found) == 1 else None
