"""What the ``codes`` kernel and its schedule agree on: for how many rows codes become floats in registers, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.contraction.byte_rows import Groups, groups_of
from effc.compiler.codegen.cpu.contraction.fixed_point import DIGITS, Chunks, chunks_of
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.lowp import bits_of
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import float32_bits
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.formats import MOST_BITS
from effc.compiler.ir.spec import Instr

#: Rows up to which one tile takes all and makes floats in registers, where their number is known and where it is not (there each number
#: has code of its own).
FEW_ROWS, FEW_UNKNOWN = 8, 4
#: Vector registers, and bytes of the stack for rows as bytes.
REGISTERS, ROW_BYTES = 32, 48 * 1024
#: Integers up to this magnitude are bf16 numbers.
BF16_INTEGERS = 256
#: Cycles that making floats of a vector of codes takes: a shift and a permutation, two conversions, ….
DECODING = 2
#: Cycles that a vector's codes take for a step of K where they only become bytes: a shift and a mask for four steps, and a sign.
UNPACKING = 0.25


def few_rows(rows: Expr) -> int:
    """Up to how many rows a contraction of ``rows`` is written as one tile; 0 where it always has more."""
    if rows.constant is None:
        return FEW_UNKNOWN
    return rows.constant if rows.constant <= FEW_ROWS else 0


def held_as(nest: Nest, target: Target) -> Groups | Chunks | None:
    """How few rows are held as bytes: as they are (`byte_rows`), or as digits (`fixed_point`); None where neither is so."""
    if takes_pairs(nest) and in_pairs(nest, target):
        return None
    return groups_of(nest, target) or chunks_of(nest, target)


def bytes_each(nest: Nest, target: Target) -> int:
    """How many bytes stand for an element of a row that is held as bytes."""
    return 1 if isinstance(held_as(nest, target), Groups) else DIGITS


def rows_as_bytes(nest: Nest, target: Target, vectors: int) -> int:
    """Up to how many rows meet the packed codes as bytes, in a tile of so many vectors; 0 for none."""
    size, kept, each = nest.size(nest.row), held_as(nest, target), bytes_each(nest, target)
    if kept is None:
        return 0
    # A sum for each digit, beside them the digit, and each vector's word and the codes of its field.
    fits = [
        rows
        for rows in range(1, few_rows(size) + 1)
        if each * rows * vectors + 2 * vectors + 1 <= REGISTERS and kept.bytes(rows) <= ROW_BYTES
    ]
    most = max(fits, default=0)
    return most if size.constant in (None, most) else 0


def takes_pairs(nest: Nest) -> bool:
    """Whether a lookup gives two codes at a time, in bf16: those of a table."""
    return nest.right.format is not None and nest.right.format.bits <= MOST_BITS


def _bytes(body: Sequence[Instr], chain: Sequence[int]) -> list[float]:
    """The numbers that an i8 can be after its conversions."""
    first = 0 if any(body[i].op in ("arith.uitofp", "arith.extui") for i in chain) else -128
    return [float(n) for n in range(first, first + 256)]


def in_pairs(nest: Nest, target: Target) -> bool:
    """Whether products of codes are summed by pairs, in bf16 (``vdpbf16ps``): rows are bf16, and so are the codes, exactly."""
    left, right, body = nest.left, nest.right, nest.spec.body
    if nest.spec.operands[left.operand].dtype != "bf16" or any(body[i].op != "arith.extf" for i in left.chain):
        return False
    numbers = _bytes(body, right.chain)
    if right.format is not None:
        numbers = [right.format.value(code) for code in range(1 << right.format.bits)]
    if right.zero is not None:
        if nest.spec.operands[right.zero.operand].dtype != "i8":
            return False
        zeros = _bytes(body, right.zero.chain)
        numbers = [n - z for n in numbers for z in (zeros[0], zeros[-1])]
        if max(map(abs, numbers)) > BF16_INTEGERS:
            return False
    exact = all(bits_of(v, "bf16") << 16 == float32_bits(v) for v in numbers)
    return exact and target.sums_pairs and target.vector_bytes == 64
