"""The arena: buffers that live at the same time never overlap, whatever the sizes; memory is shared where lives allow."""

from __future__ import annotations

import random

import pytest

from effc.compiler.ir.expr import Expr, const, parse
from effc.compiler.pipeline.memory import ALIGNMENT, Life, plan_arena

SYMBOLS = {"s0": 13, "s1": 1}


def _check(sizes: list[Expr], lives: dict[int, Life], symbols: dict[str, int]) -> int:
    arena = plan_arena(sizes, lives, {})
    offsets, total = arena.offsets, arena.size
    assert arena.zeroed == 0
    assert offsets.keys() == lives.keys()
    spans = {
        i: (offsets[i].evaluate(symbols), offsets[i].evaluate(symbols) + sizes[i].evaluate(symbols)) for i in lives
    }
    for i, (start, end) in spans.items():
        assert start % ALIGNMENT == 0
        assert 0 <= start <= end <= max(total.evaluate(symbols), end if start == end else 0)
        for j, (other_start, other_end) in spans.items():
            if i < j and lives[i].overlaps(lives[j]):
                assert end <= other_start or other_end <= start or start == end or other_start == other_end
    return total.evaluate(symbols)


@pytest.mark.parametrize("seed", range(30))
def test_random_buffers_never_overlap_while_alive(seed: int) -> None:
    rng = random.Random(seed)
    choices = [const(rng.randrange(0, 5000)) for _ in range(12)] + [parse("64*s0"), parse("s0*s1*4"), parse("s0 + 7")]
    sizes = [rng.choice(choices) for _ in range(25)]
    lives = {}
    for i in range(25):
        if rng.random() < 0.9:
            first = rng.randrange(20)
            lives[i] = Life(first, first + rng.randrange(6))
    for symbols in ({"s0": 13, "s1": 1}, {"s0": 1, "s1": 900}, {"s0": 1000, "s1": 3}):
        _check(sizes, lives, symbols)


def test_a_chain_of_layers_needs_two_buffers() -> None:
    lives = {i: Life(i, i + 1) for i in range(10)}
    assert _check([const(6400)] * 10, lives, {}) == 2 * 6400
    symbolic = _check([parse("640*s0")] * 10, lives, SYMBOLS)
    assert symbolic == 2 * 640 * 13


def test_a_smaller_symbolic_buffer_takes_the_place_of_a_larger_one() -> None:
    lives = {0: Life(0, 1), 1: Life(2, 3)}
    assert _check([parse("128*s0"), parse("64*s0")], lives, SYMBOLS) == 128 * 13
    # nothing is known of s0 against s1: both get their own
    assert _check([parse("64*s0"), parse("64*s1")], lives, SYMBOLS) == 64 * 13 + 64


def test_only_equal_boxes_share_the_zeros_around_them() -> None:
    sizes = [const(640)] * 6 + [parse("64*s0")]
    lives = {i: Life(i, i) for i in range(7)}
    arena = plan_arena(sizes, lives, {0: "a", 1: "b", 2: "a", 3: "a"})
    at = {i: offset.evaluate(SYMBOLS) for i, offset in arena.offsets.items()}
    assert at[0] == at[2] == at[3]
    assert {at[0], at[1]} == {0, 640}
    assert arena.zeroed == 2 * 640
    assert at[4] == at[5] == arena.zeroed
    assert at[6] == 3 * 640


def test_equal_boxes_that_live_at_once_lie_apart() -> None:
    arena = plan_arena([const(64)] * 3, {0: Life(0, 2), 1: Life(1, 3), 2: Life(3, 4)}, dict.fromkeys(range(3), "a"))
    assert arena.offsets[0] == arena.offsets[2] != arena.offsets[1]
    assert arena.zeroed == arena.size.evaluate({}) == 128
