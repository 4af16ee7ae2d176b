"""bf16 rows taken two neighbours at a time: 32 elements fill an AVX-512 register, and none is widened by itself."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, split_type, vector_type

#: Sum of two bf16 products a lane: ``acc + a[2i] * b[2i] + a[2i+1] * b[2i+1]``.
_DOT_BF16 = "llvm.x86.avx512bf16.dpbf16ps.512"
#: Elements of a register.
PAIRED = 32


def has_pairs(dtypes: Sequence[str], channels: int, target: Target) -> bool:
    """Whether rows of ``channels`` elements of ``dtypes`` fill registers of pairs."""
    return target.sums_pairs and all(t == "bf16" for t in dtypes) and channels % PAIRED == 0


def load_pairs(b: Builder, pointer: Value) -> Value:
    """32 neighbours from ``pointer`` on, as bf16."""
    return _cast(b, b.load(pointer, vector_type(PAIRED, "i16")), vector_type(PAIRED, "bf16"))


def dot_pairs(b: Builder, total: Value, x: Value, y: Value) -> Value:
    """``total`` plus the products of each lane's pair."""
    return b.emit(
        f'llvm.call_intrinsic "{_DOT_BF16}"({total.name}, {x.name}, {y.name}) '
        f": ({total.type}, {x.type}, {y.type}) -> {total.type}",
        total.type,
    )


def halves(b: Builder, pairs: Value) -> list[Value]:
    """The even and the odd elements of 32 pairs, in f32 (exact)."""
    lanes = PAIRED // 2
    bits = _cast(b, pairs, vector_type(lanes, "i32"))
    even = b.op("arith.shli", bits, b.constant(16, "i32", lanes))
    odd = b.op("arith.andi", bits, b.constant(-65536, "i32", lanes))
    return [b.cast("arith.bitcast", v, "f32") for v in (even, odd)]


def interleaved(b: Builder, even: Value, odd: Value) -> list[Value]:
    """The two vectors that `halves` took apart, in order."""
    lanes = split_type(even.type)[0]
    found = []
    for first in (0, lanes // 2):
        picks = ", ".join(f"{first + i}, {lanes + first + i}" for i in range(lanes // 2))
        found.append(b.emit(f"vector.shuffle {even.name}, {odd.name} [{picks}] : {even.type}, {odd.type}", even.type))
    return found


def _cast(b: Builder, value: Value, type_: str) -> Value:
    return b.emit(f"vector.bitcast {value.name} : {value.type} to {type_}", type_)
