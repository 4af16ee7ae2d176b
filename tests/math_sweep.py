"""Error of the vector math library over the floats, in ulp; run as a script it prints docs/math.md's table.

``python -P tests/math_sweep.py [--ops exp,log] [--step 61] [--target host]``: every ``step``-th of the 2^32 floats (1: all of
them; an hour or so), against torch in float64; f64 functions and two-argument functions on random arguments.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable
from functools import lru_cache

import mpmath
import numpy as np
import torch

from effc.compiler.codegen.cpu.mathlib import function_for
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import PTR, Builder, vector_type
from effc.runtime.elf import load

Function = Callable[..., torch.Tensor]

#: Reference in float64 (a tensor function), which for f32 results is exact enough; cbrt is not torch's.
REFERENCE: dict[str, Function] = {
    **{name: getattr(torch, name) for name in (
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
        "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "rsqrt",
    )},
    "cbrt": lambda x: torch.from_numpy(np.cbrt(x.numpy())),
    "round": lambda x: torch.where(x.abs() < 2.0**52, (x.abs() + 0.5).floor().copysign(x), x),
    "powf": torch.pow,
    "atan2": torch.atan2,
}  # fmt: skip
BINARY = ("powf", "atan2")

#: Finite and special values at which functions end, switch branch or overflow.
SPECIAL = (
    0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, 1.5, -1.5, float("inf"), float("-inf"), float("nan"), 1e-45, -1e-45,
    2.0**-126, -(2.0**-126), 3.4028235e38, -3.4028235e38, 2.0**24 + 2, -(2.0**23) + 1, 0.49999997, 2.5, -2.5, 88.72284, -103.97,
    -104.0, 10.05, 0.99999994, 1.0000001, 48000.0, 1e5, 2.0**20, 1e22,
)  # fmt: skip


@lru_cache(maxsize=256)
def vector_function(op: str, dtype: str = "f32", target: str = "host", lanes: int = 16) -> Function:
    """The library's function as a function of tensors, their length a multiple of ``lanes``."""
    chosen = Target.named(target)
    arguments = 2 if op in (*BINARY, "fpowi", "ipowi") else 1
    types = [dtype, "i32" if op == "fpowi" else dtype][:arguments]
    found = function_for(f"math.{op}", dtype, lanes, chosen.has("fma"), chosen.vector_bytes == 64)
    assert found is not None, f"{op} has no function in {dtype}"
    b = Builder()
    b.declare(*found)
    with b.function("k_math", [*[PTR] * arguments, PTR, "i64"]) as values:
        *inputs, output, count = values
        with b.loop(b.index(0), count, lanes) as loop:
            loaded = [
                b.load(b.element_pointer(p, loop.index, t), vector_type(lanes, t))
                for p, t in zip(inputs, types, strict=True)
            ]
            result = b.call(found[0], loaded, vector_type(lanes, dtype))
            b.store(result, b.element_pointer(output, loop.index, dtype))
    loaded_object = load(compile_object(b.text(), chosen))
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (arguments + 1), ctypes.c_int64)(
        loaded_object.symbols["k_math"]
    )

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        assert all(t.is_contiguous() and t.numel() % lanes == 0 for t in tensors)
        out = torch.full_like(tensors[0], -77)
        function(*[t.data_ptr() for t in tensors], out.data_ptr(), out.numel())
        return out

    call.keep = loaded_object  # type: ignore[attr-defined]
    return call


def ulp_error(got: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """|got - exact| in ulp of f32 at the exact (f64) value; infinite where NaN, infinity or a zero's sign is wrong.

    An overflow counts as 2^128, so that rounding to inf or to the largest float at the limit is an error of at most 1 ulp.
    """
    value = got.double()
    exponent = torch.frexp(exact.abs().clamp(min=2.0**-126))[1].double() - 1
    limit = 2.0**128
    a = torch.where(value.isinf(), value.sign() * limit, value)
    b = torch.where(exact.abs() > limit, exact.sign() * limit, exact)
    error = (a - b).abs() / torch.exp2(exponent.clamp(max=127) - 23)
    wrong = (value.isnan() != exact.isnan()) | (exact.isinf() & (value != exact))
    wrong |= (exact == 0) & ((value != 0) | (value.signbit() != exact.signbit()))
    return torch.where(wrong, torch.inf, torch.where(exact.isnan(), 0.0, error))


def floats(step: int, start: int = 0, stop: int = 2**32) -> torch.Tensor:
    """Every ``step``-th bit pattern of f32, and the special values; a multiple of 16 of them."""
    bits = np.arange(start, stop, step, dtype=np.uint64).astype(np.uint32)
    x = torch.cat([torch.tensor(SPECIAL), torch.from_numpy(bits.view(np.float32).copy())])
    return torch.cat([x, torch.ones(-len(x) % 16)])


def pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random arguments of all magnitudes for a two-argument function, and all pairs of special values."""
    special = torch.tensor(SPECIAL)
    x = torch.cat([special.repeat_interleave(len(SPECIAL)), torch.randn(count) * torch.exp(torch.randn(count) * 4)])
    y = torch.cat([special.repeat(len(SPECIAL)), torch.randn(count) * torch.exp(torch.randn(count) * 2)])
    keep = len(x) // 16 * 16
    return x[:keep].contiguous(), y[:keep].contiguous()


def f64_error(op: str, x: torch.Tensor, target: str = "host") -> float:
    """Most ulp of f64 by which the function is off on ``x``, against mpmath."""
    got = vector_function(op, "f64", target, 8)(x)
    worst = 0.0
    with mpmath.workdps(50):
        for argument, value in zip(x.tolist(), got.tolist(), strict=True):
            exact = getattr(mpmath, {"log": "ln"}.get(op, op))(mpmath.mpf(argument))
            ulp = np.spacing(max(abs(float(exact)), 2.0**-1022))
            worst = max(worst, float(abs(exact - value) / mpmath.mpf(float(ulp))))
    return worst


def worst_error(op: str, step: int, target: str = "host") -> tuple[float, float]:
    """(error of the library, error of eager) in f32."""
    worst = [0.0, 0.0]
    chunk = 1 << 28
    parts = [pairs(2_000_000)] if op in BINARY else [(floats(step, s, s + chunk),) for s in range(0, 2**32, chunk)]
    for part in parts:
        exact = REFERENCE[op](*(p.double() for p in part))
        for k, function in enumerate((vector_function(op, "f32", target), REFERENCE[op])):
            worst[k] = max(worst[k], float(ulp_error(function(*part), exact).max()))
    return worst[0], worst[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", default=",".join(REFERENCE))
    parser.add_argument("--step", type=int, default=61)
    parser.add_argument("--target", default="host")
    chosen = parser.parse_args()
    for op in chosen.ops.split(","):
        ours, eager = worst_error(op, chosen.step, chosen.target)
        print(f"| {op} | {ours:.2f} | {eager:.2f} |", flush=True)


if __name__ == "__main__":
    main()
