"""The arena: buffers that live at the same time never overlap, whatever the sizes; memory is shared where lives allow."""

from __future__ import annotations

import random

import pytest

from effc.compiler.ir.expr import Expr, const, parse
from effc.compiler.pipeline.memory import ALIGNMENT, Life, plan_arena

SYMBOLS = {"s0": 13, "s1": 1}


def _check(sizes: list[Expr], lives: dict[int, Life], symbols: dict[str, int]) -> int:
    offsets, total = plan_arena(sizes, lives)
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


@pytest.mark.parametrize("seed", range(10))
def test_two_threads_find_their_halves_where_they_wrote_the_last_buffer(seed: int) -> None:
    """Of static buffers that share memory, each has its middle where the other has it."""
    rng = random.Random(seed)
    sizes = [rng.choice([200_000, 90_000, 81_000, 3_000, rng.randrange(1, 150_000)]) for _ in range(40)]
    lives = {i: Life(first, first + rng.randrange(4)) for i in range(40) for first in [rng.randrange(40)]}
    offsets, _ = plan_arena([const(size) for size in sizes], lives)
    starts = {i: offset.constant or 0 for i, offset in offsets.items()}
    ends = {i: start + sizes[i] for i, start in starts.items()}
    shared = [(i, j) for i in lives for j in lives if i < j and starts[i] < ends[j] and starts[j] < ends[i]]
    assert len(shared) > 20
    for i, j in shared:
        assert abs((starts[i] + ends[i]) - (starts[j] + ends[j])) <= 4 * ALIGNMENT


def test_the_slot_that_was_left_last_is_taken() -> None:
    lives = {0: Life(0, 1), 1: Life(1, 4), 2: Life(5, 6)}
    offsets, _ = plan_arena([const(640)] * 3, lives)
    assert offsets[2] == offsets[1]


def test_scratch_memory_is_no_others() -> None:
    """Each thread has a part of it, of which most are those of threads that there are not."""
    lives = {i: Life(i, i) for i in range(6)}
    offsets, total = plan_arena([const(n) for n in (640, 6400, 640, 3200, 640, 64)], lives, scratch={1, 3})
    starts = [offsets[i].constant or 0 for i in range(6)]
    assert starts[1] == starts[3]
    assert max(starts[0], starts[2], starts[4], starts[5]) < starts[1]
    assert total.constant == 640 + 6400
