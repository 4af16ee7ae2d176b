"""Factors that are codes: integers of few bits or numbers of a codebook, less a zero point, times a scale."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from effc.compiler.codegen.gpu.contraction.pieces import pieces_of
from effc.compiler.ir.expr import Call, Expr, var
from effc.compiler.ir.formats import Format
from effc.compiler.ir.spec import KernelSpec

#: Groups of other sizes are no whole blocks of a sum.
_LEAST_GROUP = 16


@dataclass(frozen=True)
class Codes:
    """``value``: an integer of at most 9 bits and a sign, or a number of a codebook, in f32. ``zero``: what is subtracted from it, if that
    is no such integer too; ``scale``: what multiplies the difference; None: nothing. ``varies``: whether one of both differs from step to
    step of the sum; ``group``: how many steps of the innermost sum they are the same for, a power of two; 0: for all of it. ``pieces``:
    of how many numbers of 16 bits a value is the sum.
    """

    value: int
    zero: int | None
    scale: int | None
    varies: bool
    group: int
    pieces: int = 1


def read_codes(spec: KernelSpec, value: int, outer: Collection[int], dtype: str) -> Codes | None:
    """``value`` as codes, by the form that `effc.compiler.ir.spec` gives; None: it is none, or its scale or zero point differs within a
    block of the sum, or it is not exactly a few numbers of ``dtype``. ``outer``: the dims of the sum that are looped over, a block at a
    time being of the innermost.
    """
    instr, scale, zero = spec.body[value], None, None
    if instr.op == "arith.mulf":
        value, scale = instr.args
        instr = spec.body[value]
    inner = value
    if instr.op == "arith.subf":
        inner, zero = instr.args
        if _is_byte(spec, zero) and _is_byte(spec, inner):
            zero = None
        else:
            value = inner
    pieces = 1 if _is_byte(spec, inner) else _pieces(spec, inner, dtype)
    if not pieces:
        return None
    grains = [g for g in (zero, scale) if g is not None]
    groups = _groups_of(spec, grains, outer)
    return None if groups is None else Codes(value, zero, scale, *groups, pieces)


def _pieces(spec: KernelSpec, value: int, dtype: str) -> int:
    """Of a number of a codebook; 0: it is none, or too many."""
    instr = spec.body[value]
    return pieces_of(Format.of(instr).codebook, dtype) if instr.op == "decode" and instr["codebook"] else 0


def _is_byte(spec: KernelSpec, value: int) -> bool:
    """Whether an instruction is an integer of 8 bits."""
    instr = spec.body[value]
    if instr.op == "decode":
        return not instr["codebook"]
    return instr.op in ("arith.sitofp", "arith.uitofp") and spec.body[instr.args[0]].dtype == "i8"


def _groups_of(spec: KernelSpec, grains: Sequence[int], outer: Collection[int]) -> tuple[bool, int] | None:
    """`Codes.varies` and `Codes.group` of what is computed from ``grains``; None: they differ within a block."""
    summed = {f"d{i}" for i, d in enumerate(spec.dims) if d.kind == "reduction"}
    last, looped = f"d{len(spec.dims) - 1}", {f"d{i}" for i in outer}
    varies, groups = False, set[int]()
    pending = list(grains)
    while pending:
        instr = spec.body[pending.pop()]
        pending += instr.args
        for _, e in instr.attributes:
            along = summed & e.variables() if isinstance(e, Expr) else set()
            if not along:
                continue
            varies = True
            if along <= looped:
                continue
            found = _divisor(e, last)
            if found is None or not along <= {last, *looped}:
                return None
            groups.add(found)
    if not groups:
        return varies, 0
    group = min(groups)
    whole = all(g % group == 0 for g in groups)
    return (True, group) if whole and group >= _LEAST_GROUP and group & (group - 1) == 0 else None


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
