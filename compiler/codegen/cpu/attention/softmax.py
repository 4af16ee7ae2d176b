"""Arithmetic of attention's softmax on vectors: products, the larger of two, and an exponential for arguments that are not positive."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu.mathlib.coefficients import EXP2_FRACTION_F32, EXP_F32
from effc.compiler.codegen.cpu.mathlib.exponential import LOG2E, ROUND_F32
from effc.compiler.codegen.cpu.ops import OpEmitter
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, split_type
from effc.compiler.ir.spec import Instr

#: ln 2 as an f32, off by 1.9e-9: one fused step that subtracts n times it leaves an error of n times that.
_LN2 = 0.693147182464599609375
#: Lower arguments give 0: of a subnormal number Intel's cores make one in some 150 cycles a vector, of which masks are full.
_LOWEST = -87.0
#: The same of 2^x.
_LOWEST_EXPONENT = -126.0


@dataclass
class Softmax:
    """``kind`` is the type of scores and sums: f32 or f64."""

    b: Builder
    target: Target
    kind: str

    def __post_init__(self) -> None:
        self._ops = OpEmitter(self.b, self.target)

    def function(self, op: str, value: Value) -> Value:
        """A function of `mathlib`, such as ``math.log``."""
        return self._ops.emit(Instr(op, (0,), self.kind), [value], [self.kind])

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """``x * y + z``, rounded once where the target can do that in one instruction."""
        if self.target.has("fma"):
            return self.b.op("math.fma", x, y, z)
        return self.b.op("arith.addf", self.b.op("arith.mulf", x, y), z)

    def largest(self, x: Value, y: Value) -> Value:
        """The larger one; ``y`` where one is NaN (a NaN score reaches the sum by itself). One instruction on x86."""
        return self.b.select(self.b.compare("arith.cmpf", "ogt", x, y), x, y)

    def finite(self, highest: Value) -> Value:
        """The maximum to subtract: 0 where every score so far is -inf, whose difference with itself would be NaN."""
        lanes = split_type(highest.type)[0]
        none = self.b.compare("arith.cmpf", "oeq", highest, self.b.constant("-inf", self.kind, lanes))
        return self.b.select(none, self.b.constant(0, self.kind, lanes), highest)

    def divisor(self, total: Value, *, nan_rows: bool) -> Value:
        """What to divide by: 1 for a query that saw nothing, whose sum and result are 0; with ``nan_rows`` its result is 0 / 0."""
        if nan_rows:
            return total
        lanes = split_type(total.type)[0]
        nothing = self.b.compare("arith.cmpf", "oeq", total, self.b.constant(0, self.kind, lanes))
        return self.b.select(nothing, self.b.constant(1, self.kind, lanes), total)

    def exp(self, x: Value) -> Value:
        """The exponential of x <= 0; NaN passes. In f32 within 1 ulp for x >= -5, 1.5 for x >= -20 and 5 for x >= -87.

        Lower arguments, which weigh nothing in a softmax whose largest term is 1, give 0.
        """
        lanes = split_type(x.type)[0]
        if self.kind != "f32" or not self.target.has("fma"):
            return self.function("math.exp", x)

        def number(value: float) -> Value:
            return self.b.constant(value, "f32", lanes)

        b = self.b
        below = b.compare("arith.cmpf", "olt", x, number(_LOWEST))
        x = b.select(below, number(0.0), x)
        biased = b.op("math.fma", x, number(LOG2E), number(ROUND_F32))
        n = b.op("arith.subf", biased, number(ROUND_F32))
        r = b.op("math.fma", n, number(-_LN2), x)
        p = number(EXP_F32[-1])
        for coefficient in (*EXP_F32[-2::-1], 1.0, 1.0):
            p = b.op("math.fma", p, r, number(coefficient))
        if self.target.vector_bytes == 64 and lanes == 16:
            return b.select(below, number(0.0), self._scaled(p, n))
        power = b.op("arith.shli", b.cast("arith.bitcast", biased, "i32"), b.constant(23, "i32", lanes))
        bits = b.op("arith.addi", b.cast("arith.bitcast", p, "i32"), power)
        return b.select(below, number(0.0), b.cast("arith.bitcast", bits, "f32"))

    def exp2(self, x: Value) -> Value:
        """2^x of 16 f32 by AVX-512, for x up to about 0, within 3 ulp; 0 below -126, NaN passes. It takes two thirds of `exp`'s
        instructions.
        """
        b, lanes = self.b, split_type(x.type)[0]
        mask, floor, rounding = b.constant(-1, "i16"), b.constant(9, "i32"), b.constant(4, "i32")
        fraction = b.emit(
            f'llvm.call_intrinsic "llvm.x86.avx512.mask.reduce.ps.512"({x.name}, {floor.name}, {x.name}, {mask.name}, {rounding.name})'
            f" : ({x.type}, i32, {x.type}, i16, i32) -> {x.type}",
            x.type,
        )
        p = b.constant(EXP2_FRACTION_F32[-1], "f32", lanes)
        for coefficient in EXP2_FRACTION_F32[-2::-1]:
            p = b.op("math.fma", p, fraction, b.constant(coefficient, "f32", lanes))
        within = b.compare("arith.cmpf", "uge", x, b.constant(_LOWEST_EXPONENT, "f32", lanes))
        return self._scaled(p, x, b.emit(f"llvm.bitcast {within.name} : {within.type} to i16", "i16"))

    def _scaled(self, p: Value, n: Value, mask: Value | None = None) -> Value:
        """``p * 2^floor(n)`` by AVX-512's vscalefps, 0 in lanes that ``mask`` leaves out: they cost nothing."""
        b = self.b
        mask, rounding = mask or b.constant(-1, "i16"), b.constant(4, "i32")  # all lanes; the current rounding mode
        zero = b.constant(0, "f32", split_type(p.type)[0])
        return b.emit(
            f'llvm.call_intrinsic "llvm.x86.avx512.mask.scalef.ps.512"({p.name}, {n.name}, {zero.name}, {mask.name}, {rounding.name})'
            f" : ({p.type}, {n.type}, {p.type}, i16, i32) -> {p.type}",
            p.type,
        )
