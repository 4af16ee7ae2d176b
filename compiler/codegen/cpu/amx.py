"""Intel's Advanced Matrix Extensions: eight tile registers of up to 16 rows of 64 bytes, and products of tiles.

For bf16, ``C[i][j] += sum over p of A[i][2p] * B[p][2j] + A[i][2p+1] * B[p][2j+1]`` in f32: 16 x 16 x 32 products in 16 cycles,
sixteen times what multiply-adds of f32 do. A row of B holds groups of 4 bytes of neighbours in K (pairs of bf16, fours of bytes), as
panels are packed. See Intel's Software Developer's Manual, volume 1, chapter 18, and ``TDPBF16PS`` in volume 2: it rounds to nearest
even and takes subnormal factors and sums for zero, whatever MXCSR says. Of bytes (``TDPBUSD`` and its like) four lie together, and the
sums in i32 are exact but for its overflow: 16 x 16 x 64 products in the same time.

Tile registers belong to the thread that configured them. A thread releases them when it is done: as long as they are in use, every switch
of context saves 8 KiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from effc.compiler.codegen.cpu.text import Builder, Value

#: Rows of a tile, and bytes of one.
ROWS, ROW_BYTES = 16, 64
#: Bytes of neighbours in K that lie together in a right factor.
GROUP_BYTES = 4
#: Tile registers.
TILES = 8


@contextmanager
def configured(b: Builder, sizes: Sequence[tuple[Value, int]]) -> Iterator[None]:
    """Tile registers of so many rows (1 to 16), and bytes a row (a multiple of 4, up to 64), each; call it at the top of a function,
    which must not return inside.
    """
    memory = b.stack(64, "i8")
    b.store(b.constant(0, "i8", 64), memory)
    b.store(b.constant(1, "i8"), memory)  # the palette
    for i, (count, width) in enumerate(sizes):
        b.store(b.constant(width, "i16"), b.element_pointer(memory, b.index(16 + 2 * i), "i8"))
        b.store(b.cast("arith.trunci", count, "i8"), b.element_pointer(memory, b.index(48 + i), "i8"))
    _assembly(b, "ldtilecfg ($0)", memory)
    yield
    _assembly(b, "tilerelease")


def load_tile(b: Builder, tile: int, pointer: Value, stride: Value) -> None:
    """Rows from ``pointer`` on, ``stride`` bytes apart."""
    _assembly(b, f"tileloadd ($0,$1,1), %tmm{tile}", pointer, stride)


def store_tile(b: Builder, tile: int, pointer: Value, stride: Value) -> None:
    """Rows to ``pointer`` on, ``stride`` bytes apart."""
    _assembly(b, f"tilestored %tmm{tile}, ($0,$1,1)", pointer, stride)


def clear_tile(b: Builder, tile: int) -> None:
    """All zeros."""
    _assembly(b, f"tilezero %tmm{tile}")


def multiply_bf16(b: Builder, total: int, left: int, right: int) -> None:
    """``total`` plus the product of ``left`` and ``right``."""
    _assembly(b, f"tdpbf16ps %tmm{right}, %tmm{left}, %tmm{total}")


def multiply_bytes(b: Builder, total: int, left: int, right: int, unsigned: tuple[bool, bool]) -> None:
    """The same of bytes, summed in i32 as it wraps; ``unsigned``: which factors are."""
    kinds = "".join("u" if u else "s" for u in unsigned)
    _assembly(b, f"tdpb{kinds}d %tmm{right}, %tmm{left}, %tmm{total}")


def by_halves(b: Builder, height: Value, products: Callable[[int], None]) -> None:
    """``products`` of one tile of rows, or of two, as ``height`` rows take."""

    def write(halves: int) -> list[Value]:
        products(halves)
        return []

    known = b.integer_of(height)
    if known is not None:
        write(2 if known > ROWS else 1)
        return
    tall = b.compare("arith.cmpi", "sgt", height, b.index(ROWS))
    b.choose(tall, (), lambda: write(2), lambda: write(1))


def _assembly(b: Builder, text: str, *args: Value) -> None:
    """Assembly, not LLVM's intrinsics: behind those, its scheduler takes any free register for another, whose tile has other rows."""
    names, types = (", ".join(parts) for parts in ((a.name for a in args), (a.type for a in args)))
    constraints = ",".join([*("r" for _ in args), "~{memory}"])
    operands = f" {names}" if args else ""
    b.line(f'llvm.inline_asm has_side_effects asm_dialect = att "{text}", "{constraints}"{operands} : ({types}) -> ()')
