"""Rows of a contraction: cut into even tiles, each row in one of them, whatever their number and whenever it is known."""

from __future__ import annotations

import pytest
from contraction_cases import Case, Runner

from effc.compiler.codegen.cpu.contraction.rows import heights, split
from effc.compiler.ir.expr import const, var


@pytest.mark.parametrize("tallest", [1, 6, 8, 13])
def test_tiles_hold_every_row_once_and_are_even(tallest: int) -> None:
    for rows in range(1, 200):
        cut = split(rows, tallest)
        assert sum(tiles * height for tiles, height in cut) == rows
        assert sum(tiles for tiles, _ in cut) == -(-rows // tallest)
        found = [height for _, height in cut]
        assert max(found) <= tallest
        assert max(found) - min(found) <= 1


def test_heights_that_have_code() -> None:
    assert heights(const(17), 8) == [6, 5]
    assert heights(const(128), 8) == [8]
    assert heights(const(0), 8) == [8]
    assert heights(var("s0"), 4) == [4, 3, 2, 1]


def test_rows_known_at_run_time() -> None:
    runner = Runner(Case(("s0", 70, 37), 1, (37, 0, 1), (0, 37, 1), (70, 1, 0), bias=(0, 1)), pack=1)
    for rows in (0, *range(1, 20), 47, 128):
        runner.check(threads=2, s0=rows)


@pytest.mark.parametrize("rows", [1, 2, 9, 17, 31, 61])
def test_rows_known_before(rows: int) -> None:
    runner = Runner(Case((rows, 100, 300), 1, (300, 0, 1), (0, 300, 1), (100, 1, 0), relu=True), pack=1)
    runner.check()
    runner.check(threads=2)


def test_rows_at_a_stride_known_at_run_time() -> None:
    runner = Runner(Case((21, 40, 33), 1, ("s0", 0, 1), (0, 33, 1), (40, 1, 0)), pack=1)
    for stride in (33, 64, 1000):
        runner.check(s0=stride)
