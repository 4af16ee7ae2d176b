"""Vector math: MLIR text for the elementary functions that LLVM would call libm for, lane by lane.

``function_for("math.exp", "f32", 16)`` gives the name and the text of a private function on ``vector<16xf32>``, to be
declared once in a kernel's module and inlined. How each is computed, and its measured error, is in ``docs/math.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from effc.compiler.codegen.cpu.mathlib import exponential, special
from effc.compiler.codegen.cpu.mathlib.builder import Builder, Value

Body = Callable[..., Value]

#: op → body in f64 whose result, rounded to f32, is right.
WIDE: dict[str, Body] = {
    "math.exp": exponential.exp_wide,
    "math.exp2": exponential.exp2_wide,
    "math.expm1": exponential.expm1_wide,
    "math.sinh": exponential.sinh_wide,
    "math.cosh": exponential.cosh_wide,
    "math.tanh": exponential.tanh_wide,
    "math.erf": special.erf_wide,
    "math.erfc": special.erfc_wide,
}

#: op → body in f32, for targets with fma.
FUSED: dict[str, Body] = {
    "math.exp": exponential.exp_full_f32,
    "math.exp2": exponential.exp2_f32,
    "math.tanh": exponential.tanh_f32,
    "math.erf": special.erf_f32,
}

#: Ops that LLVM has no instruction for; in f64 they are libm's, lane by lane.
_LIBM = frozenset(WIDE)
_BINARY = frozenset({"math.powf", "math.atan2"})


@lru_cache(maxsize=256)
def function_for(op: str, dtype: str, lanes: int, fma: bool = True) -> tuple[str, str] | None:
    """(name, text) of the function for ``op`` on ``lanes`` elements of ``dtype``, or None where the plain op is best.

    ``lanes`` 1 means scalars. ``fma``: whether the target has fused multiply-add. The text is self-contained: on rare
    paths it holds scalar ``math`` ops, which ``convert-math-to-llvm`` and ``convert-math-to-libm`` turn into libm's
    calls. Arguments and result have the op's own types.
    """
    if op not in _LIBM or dtype not in ("f32", "f64"):
        return None
    b = Builder(lanes, fma)
    arguments = [b.argument(k, dtype) for k in range(2 if op in _BINARY else 1)]
    if dtype == "f64":
        if lanes == 1:
            return None
        result = b.each_lane(op, arguments)
    elif fma and op in FUSED:
        result = FUSED[op](b, *arguments)
    else:
        result = b.narrow(WIDE[op](b, *(b.widen(a) for a in arguments)))
    name = f"effc_{op.removeprefix('math.')}_{dtype}x{lanes}{'' if fma else '_nofma'}"
    return name, b.function(name, arguments, result)
