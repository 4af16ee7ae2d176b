"""Sums of products of four unsigned with four signed bytes, in i32, exact but for its overflow.

AVX512-VNNI does a lane's four in one instruction (``vpdpbusd``: 16 x 4 products). Without it bytes are taken as the halves of 16-bit
words and pairs of these products are summed by ``vpmaddwd``; ``vpmaddubsw`` would take bytes themselves, but it saturates at 16 bits.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, split_type, vector_type

#: ``vpmaddwd`` by lanes of the result.
_PAIRS = {16: "avx512.pmaddw.d.512", 8: "avx2.pmadd.wd", 4: "sse2.pmadd.wd"}


def dot_bytes(b: Builder, target: Target, total: Value, unsigned: Value, signed: Value) -> Value:
    """``total`` (i32 lanes) plus the products of each lane's four bytes; the factors are i32 lanes too, the first byte lowest."""
    lanes = split_type(total.type)[0]
    if lanes == 16 and target.has("avx512_vnni"):
        return _call(b, "avx512.vpdpbusd.512", total, *(_as(b, v, lanes * 4, "i8") for v in (unsigned, signed)))
    if lanes not in _PAIRS:
        return _scalar(b, total, unsigned, signed)
    words, eight = 2 * lanes, b.constant(8, "i16", 2 * lanes)
    unsigned, signed = (_as(b, v, words, "i16") for v in (unsigned, signed))
    even = b.op("arith.andi", unsigned, b.constant(255, "i16", words))
    odd = b.op("arith.shrui", unsigned, eight)
    low = b.op("arith.shrsi", b.op("arith.shli", signed, eight), eight)
    high = b.op("arith.shrsi", signed, eight)
    for x, y in ((even, low), (odd, high)):
        total = b.op("arith.addi", total, _call(b, _PAIRS[lanes], x, y, result=total.type))
    return total


def dot_words(b: Builder, x: Value, y: Value) -> Value:
    """``x * y`` of i32 lanes that fit 16 bits, ``x`` not negative: each lane's products of 16-bit halves, summed (``vpmaddwd``)."""
    lanes = split_type(x.type)[0]
    return _call(b, _PAIRS[lanes], *(_as(b, v, 2 * lanes, "i16") for v in (x, y)), result=x.type)


def _scalar(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    for i in range(4):
        x = b.op("arith.andi", b.op("arith.shrui", unsigned, b.constant(8 * i, "i32")), b.constant(255, "i32"))
        top = b.op("arith.shli", signed, b.constant(24 - 8 * i, "i32"))
        total = b.op("arith.addi", total, b.op("arith.muli", x, b.op("arith.shrsi", top, b.constant(24, "i32"))))
    return total


def _as(b: Builder, value: Value, lanes: int, element: str) -> Value:
    to = vector_type(lanes, element)
    return b.emit(f"vector.bitcast {value.name} : {value.type} to {to}", to)


def _call(b: Builder, name: str, *args: Value, result: str = "") -> Value:
    to = result or args[0].type
    names, types = (", ".join(parts) for parts in ((a.name for a in args), (a.type for a in args)))
    return b.emit(f'llvm.call_intrinsic "llvm.x86.{name}"({names}) : ({types}) -> {to}', to)
