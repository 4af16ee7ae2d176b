"""Rough costs of instructions: enough to choose unrolling, buffers and threads."""

from __future__ import annotations

from collections.abc import Iterable

from effc.compiler.ir.spec import KernelSpec

_HEAVY_ARITH = frozenset(
    {"arith.divsi", "arith.divui", "arith.remsi", "arith.remui", "arith.floordivsi", "arith.ceildivsi", "arith.remf"}
)
_CHEAP_MATH = frozenset(
    {"math.absf", "math.absi", "math.copysign", "math.fma", "math.floor", "math.ceil", "math.trunc"}
    | {"math.roundeven", "math.sqrt", "math.rsqrt"}
)

#: Instructions that a polynomial of the math library counts for.
_HEAVY_WORK = 12


def is_heavy(op: str) -> bool:
    """Whether recomputing the op costs more than a load: a polynomial, an integer division, a call."""
    return op.startswith("libm.") or op in _HEAVY_ARITH or (op.startswith("math.") and op not in _CHEAP_MATH)


def joins_vectors(spec: KernelSpec) -> bool:
    """Whether to compute on the unrolled vectors as one long one.

    LLVM then writes the same instruction of each next to the other. Polynomials are chains: one vector after the other fills
    the CPU's schedulers with waiting instructions (exp, erf and GELU take 0.8, sin 0.5 of the time so).
    """
    ops = [i.op for i in spec.body]
    return any(is_heavy(op) for op in ops) and not any(op.startswith("libm.") for op in ops)


def work(spec: KernelSpec, instructions: Iterable[int]) -> int:
    """Machine instructions of one vector of points, roughly."""
    ops = [spec.body[i].op for i in instructions]
    return sum(_HEAVY_WORK if is_heavy(op) else op not in ("constant", "index") for op in ops)


def unroll_for(amount: int) -> int:
    """Vectors in flight: enough to hide latency in a short body, one where two would only be more code."""
    return 4 if amount <= 10 else 2 if amount <= 60 else 1


def cycles(op: str, lanes: int) -> float:
    """Cycles of one vector of a computing op."""
    if op.startswith("libm."):
        return 40.0 * lanes
    if op in ("constant", "index"):
        return 0.0
    return 15.0 if is_heavy(op) else 8.0 if op in ("arith.divf", "math.sqrt") else 0.5
