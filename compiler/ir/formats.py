"""Formats of low-bit codes, as data: a few bits of a weight, and the number that they stand for.

A model holds codes one a byte; kernels read them packed, as many as fit into 32 bits beside each other (`Format.codes_a_word`). A format
is all that packing and kernels know: ternary, 2 and 3 bits, powers of two or another codebook are values of this class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from effc.compiler.ir.spec import Instr

#: Bits of a code that a model's graph may ``decode``; those of more are bytes: ``arith.sitofp`` or ``arith.uitofp`` of an ``i8``.
MOST_BITS = 4
_BYTE, _WORD = 8, 32


@dataclass(frozen=True)
class Format:
    """Codes of ``bits`` bits, integers in two's complement where ``signed``, or indices of a ``codebook`` of ``2**bits`` finite numbers."""

    bits: int
    signed: bool = True
    codebook: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (1 <= self.bits <= MOST_BITS or self.bits == _BYTE):
            raise ValueError(f"codes have 1 to {MOST_BITS} bits, or {_BYTE}, not {self.bits}")
        if self.codebook and len(self.codebook) != 1 << self.bits:
            raise ValueError(f"a codebook of {self.bits} bits has {1 << self.bits} numbers, not {len(self.codebook)}")
        if any(v - v != 0 for v in self.codebook):
            raise ValueError("a number of a codebook is not finite")

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest code, as a model holds it."""
        half = 1 << (self.bits - 1)
        return (-half, half - 1) if self.signed and not self.codebook else (0, 2 * half - 1)

    @property
    def stored_bits(self) -> int:
        """Bits that a packed code takes: ``bits``, filled up to a power of two."""
        return 1 << (self.bits - 1).bit_length()

    @property
    def codes_a_word(self) -> int:
        return _WORD // self.stored_bits

    def place(self, number: int) -> int:
        """The lowest bit in its word of code ``number``: even ones fill the lower half, odd ones the upper, so that 16-bit lanes hold
        neighbours, as ``vdpbf16ps`` takes them.
        """
        return _WORD // 2 * (number % 2) + self.stored_bits * (number // 2)

    def value(self, code: int) -> float:
        """The number that the lowest bits of ``code`` stand for."""
        low = code & ((1 << self.bits) - 1)
        if self.codebook:
            return self.codebook[low]
        return float(low - (1 << self.bits) if self.signed and low >> (self.bits - 1) else low)

    def instr(self, code: int) -> Instr:
        """The ``decode`` of value ``code`` of a spec's body."""
        attributes = (("bits", self.bits), ("codebook", self.codebook), ("signed", int(self.signed)))
        return Instr("decode", (code,), "f32", attributes)

    @staticmethod
    def of(instr: Instr) -> Format:
        """The format that a ``decode`` reads."""
        codebook: Any = instr["codebook"]
        return Format(instr["bits"], bool(instr["signed"]), tuple(codebook))


INT4, UINT4, INT2, UINT2 = Format(4), Format(4, signed=False), Format(2), Format(2, signed=False)
#: Formats of integers from the fewest bits on.
INTEGERS = (UINT2, INT2, UINT4, INT4)

#: 4-bit NormalFloat: quantiles of a normal distribution, scaled to [-1, 1] (Dettmers et al., "QLoRA", NeurIPS 2023, appendix E).
NF4 = Format(
    4,
    codebook=(
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
)  # fmt: skip
