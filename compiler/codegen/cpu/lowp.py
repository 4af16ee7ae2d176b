"""bf16 and f16 values: held as their bits in ``i16``, computed in f32.

bf16 conversions are integer arithmetic here, correctly rounded on every target. AVX512_BF16's own one flushes subnormals to
zero, which eager does not, except behind sums that flush them too: there it is taken (`bf16_convert`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, float32_bits, split_type

LOW_PRECISION = frozenset({"bf16", "f16"})


def held_as(dtype: str) -> str:
    """The MLIR element type in which a body value of ``dtype`` is held."""
    return "i16" if dtype in LOW_PRECISION else dtype


def to_f32(b: Builder, bits: Value, dtype: str, target: Target) -> Value:
    """The f32 value of bf16 or f16 ``bits`` (exact)."""
    if dtype == "bf16":
        wide = b.cast("arith.extui", bits, "i32")
        lanes = split_type(bits.type)[0]
        return b.cast("arith.bitcast", b.op("arith.shli", wide, b.constant(16, "i32", lanes)), "f32")
    if target.has("f16c"):
        return b.cast("arith.extf", b.cast("arith.bitcast", bits, "f16"), "f32")
    return _f16_to_f32(b, bits)


def from_f32(b: Builder, value: Value, dtype: str, target: Target) -> Value:
    """The bits of ``value`` rounded to nearest even in ``dtype``; NaN stays NaN."""
    if dtype == "bf16":
        return _f32_to_bf16(b, value)
    if target.has("f16c"):
        return b.cast("arith.bitcast", b.cast("arith.truncf", value, "f16"), "i16")
    return _f32_to_f16(b, value)


def bits_of(value: int | float | str, dtype: str) -> int:
    """The 16 bits of a constant, rounded to nearest even."""
    number = float(value)
    if dtype == "f16":
        try:
            return int(struct.unpack("<H", struct.pack("<e", number))[0])
        except OverflowError:
            return 0xFC00 if number < 0 else 0x7C00
    bits = float32_bits(number)
    if number != number:
        return 0x7FC0
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF


def _i32_constants(b: Builder, like: Value) -> Callable[[int], Value]:
    """i32 constants with as many lanes as ``like``."""
    return lambda number: b.constant(number, "i32", split_type(like.type)[0])


def _f32_to_bf16(b: Builder, value: Value) -> Value:
    i32 = _i32_constants(b, value)
    bits = b.cast("arith.bitcast", value, "i32")
    odd = b.op("arith.andi", b.op("arith.shrui", bits, i32(16)), i32(1))
    rounded = b.op("arith.addi", bits, b.op("arith.addi", odd, i32(0x7FFF)))
    nan = b.compare("arith.cmpf", "uno", value, value)
    chosen = b.select(nan, i32(0x7FC00000), rounded)
    return b.cast("arith.trunci", b.op("arith.shrui", chosen, i32(16)), "i16")


def _f16_to_f32(b: Builder, bits: Value) -> Value:
    """Shift exponent and mantissa into place, then scale by 2^112, which also normalises subnormals; inf and NaN apart."""
    lanes, i32 = split_type(bits.type)[0], _i32_constants(b, bits)
    wide = b.cast("arith.extui", bits, "i32")
    sign = b.op("arith.shli", b.op("arith.andi", wide, i32(0x8000)), i32(16))
    magnitude = b.op("arith.shli", b.op("arith.andi", wide, i32(0x7FFF)), i32(13))
    scaled = b.op("arith.mulf", b.cast("arith.bitcast", magnitude, "f32"), b.constant(2.0**112, "f32", lanes))
    special = b.compare("arith.cmpi", "uge", magnitude, i32(0x7C00 << 13))
    whole = b.select(special, b.op("arith.ori", magnitude, i32(0x7F800000)), b.cast("arith.bitcast", scaled, "i32"))
    return b.cast("arith.bitcast", b.op("arith.ori", whole, sign), "f32")


def _f32_to_f16(b: Builder, value: Value) -> Value:
    """Round by integer addition where the result is normal, by a float addition that aligns the mantissa where
    subnormal.
    """
    lanes, i32 = split_type(value.type)[0], _i32_constants(b, value)
    bits = b.cast("arith.bitcast", value, "i32")
    sign = b.op("arith.andi", b.op("arith.shrui", bits, i32(16)), i32(0x8000))
    magnitude = b.op("arith.andi", bits, i32(0x7FFFFFFF))
    # 0.5f has an ulp of 2^-24, f16's smallest step: adding it rounds a subnormal result at the right bit.
    aligned = b.op("arith.addf", b.cast("arith.bitcast", magnitude, "f32"), b.constant(0.5, "f32", lanes))
    subnormal = b.op("arith.subi", b.cast("arith.bitcast", aligned, "i32"), i32(0x3F000000))
    odd = b.op("arith.andi", b.op("arith.shrui", magnitude, i32(13)), i32(1))
    rebased = b.op("arith.subi", b.op("arith.addi", magnitude, i32(0xFFF)), i32(112 << 23))
    normal = b.op("arith.shrui", b.op("arith.addi", rebased, odd), i32(13))
    result = b.select(b.compare("arith.cmpi", "ult", magnitude, i32(113 << 23)), subnormal, normal)
    # 0x477FF000 is 65520, the first magnitude that rounds to infinity.
    result = b.select(b.compare("arith.cmpi", "uge", magnitude, i32(0x477FF000)), i32(0x7C00), result)
    result = b.select(b.compare("arith.cmpi", "ugt", magnitude, i32(0x7F800000)), i32(0x7E00), result)
    return b.cast("arith.trunci", b.op("arith.ori", result, sign), "i16")
