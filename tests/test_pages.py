"""Memory in huge pages: tensors keep their values, never overlap, and give everything back when the last one goes."""

from __future__ import annotations

import weakref
from itertools import pairwise

import pytest
import torch

from effc.runtime.pages import HUGE, Pages, empty_bytes


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, HUGE - 1, HUGE, HUGE + 1, 3 * HUGE])
def test_bytes_lie_on_whole_lines_or_huge_pages(size: int) -> None:
    memory = empty_bytes(size)
    assert memory.numel() >= size
    assert memory.data_ptr() % (HUGE if size >= HUGE else 64) == 0
    memory.fill_(7)  # all of it is ours to write
    assert (memory == 7).all()


def test_copies_keep_their_values_beside_each_other() -> None:
    """Small, large and beyond a region, of all item sizes, empty and scalar; each is written after its neighbours were made."""
    pages, made = Pages(), []
    for shape in [(), (0,), (3, 5), (257, 129), (1023, 1025), (2049, 1031), (11, 127, 131), (2200, 2000), (641, 769)]:
        for dtype in (torch.float32, torch.bfloat16, torch.int8, torch.float64):
            given = (
                torch.randint(-100, 100, shape).to(dtype).transpose(0, -1) if shape else torch.tensor(3, dtype=dtype)
            )
            made.append((pages.copy(given), given))
    for copy, given in made:
        assert copy.is_contiguous()
        assert copy.dtype == given.dtype
        assert torch.equal(copy, given)
    spans = sorted((c.data_ptr(), c.data_ptr() + c.numel() * c.itemsize) for c, _ in made if c.numel())
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert all(start % 64 == 0 for start, _ in spans)


def test_memory_goes_with_the_last_tensor_in_it() -> None:
    pages = Pages()
    first, second = pages.copy(torch.ones(300, 300)), pages.copy(torch.ones(300, 300))
    storage = weakref.ref(first.untyped_storage())
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    del pages, first
    assert second.sum() == 90000
    del second
    assert storage() is None


def test_a_default_device_does_not_move_it() -> None:
    with torch.device("meta"):
        assert empty_bytes(10).device.type == "cpu"
