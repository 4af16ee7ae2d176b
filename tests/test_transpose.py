"""Squares that are transposed on their way from memory into registers."""

from __future__ import annotations

import ctypes
import mmap

import pytest
import torch

from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import PTR, Builder
from effc.compiler.codegen.cpu.transpose import transposed_rows
from effc.runtime import elf

PITCH = 19


@pytest.mark.parametrize(("target", "lanes"), [("host", 16), ("host", 8), ("avx2", 8)])
def test_rows_become_columns_and_nothing_behind_them_is_read(target: str, lanes: int) -> None:
    """The last row ends with a page, behind which nothing is mapped."""
    if Target.named(target).vector_bytes < 4 * lanes:
        pytest.skip("no vectors of so many lanes")
    counts = sorted({1, lanes // 2 - 1, lanes // 2, lanes // 2 + 1, lanes - 1, lanes})
    code = elf.load(compile_object(_module(lanes, counts), Target.named(target)))
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    words = torch.frombuffer(memory, dtype=torch.float32, count=mmap.PAGESIZE // 4)
    for count in counts:
        words[:] = torch.randn(len(words))
        first = len(words) - (PITCH * (lanes - 1) + count)
        expected = words[first:].as_strided((lanes, count), (PITCH, 1)).T
        out = torch.full((count + 1, lanes), float("nan"))
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(code.symbols[f"turn_{count}"])
        function(words[first:].data_ptr(), out.data_ptr())
        assert torch.equal(out[:count], expected)
        assert out[count:].isnan().all()


def _module(lanes: int, counts: list[int]) -> str:
    """A function for each of ``counts``: ``turn_COUNT(rows, out)``, of rows that lie `PITCH` elements apart."""
    b = Builder()
    for count in counts:
        with b.function(f"turn_{count}", [PTR, PTR]) as (rows, out):
            pointers = [b.element_pointer(rows, b.index(i * PITCH), "f32") for i in range(lanes)]
            for i, column in enumerate(transposed_rows(b, pointers, count)):
                b.store(column, b.element_pointer(out, b.index(i * lanes), "f32"))
    return b.text()
