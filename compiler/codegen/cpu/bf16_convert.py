"""AVX512_BF16's rounding of f32 to bf16 (``VCVTNEPS2BF16``): to nearest even, a quarter of the instructions that integers take (`lowp`).

It takes subnormal numbers for zeros, whatever MXCSR says, so it is for kernels whose sums do so too: those of tile registers and of
``vdpbf16ps``. Eager rounds by it there as well.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, vector_type

#: Numbers that one instruction rounds.
_LANES = 16


def converts(value: Value, target: Target) -> bool:
    """Whether there is an instruction for a vector as long as ``value``."""
    return target.has("avx512_bf16") and value.type == vector_type(_LANES, "f32")


def convert(b: Builder, value: Value) -> Value:
    """The bits of ``value`` in bf16; NaN stays NaN."""
    low, bits = vector_type(_LANES, "bf16"), vector_type(_LANES, "i16")
    rounded = b.emit(
        f'llvm.call_intrinsic "llvm.x86.avx512bf16.cvtneps2bf16.512"({value.name}) : ({value.type}) -> {low}', low
    )
    return b.emit(f"vector.bitcast {rounded.name} : {low} to {bits}", bits)
