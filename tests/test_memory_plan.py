"""The arena: buffers that live at the same time never overlap, whatever the sizes; memory is shared where lives allow."""

from __future__ import annotations

import random
from collections.abc import Collection

import pytest

from effc.compiler.ir.expr import Expr, const, parse
from effc.compiler.pipeline.memory import ALIGNMENT, Life, plan_arena

SYMBOLS = {"s0": 13, "s1": 1}


def _check(
    sizes: list[Expr],
    lives: dict[int, Life],
    symbols: dict[str, int],
    scratch: Collection[int] = (),
    *,
    cores: bool = True,
) -> int:
    offsets, total = plan_arena(sizes, lives, scratch, cores=cores)
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
    scratch = {i for i in lives if rng.random() < 0.3}
    for symbols in ({"s0": 13, "s1": 1}, {"s0": 1, "s1": 900}, {"s0": 1000, "s1": 3}):
        for cores in (True, False):
            _check(sizes, lives, symbols, scratch, cores=cores)


def test_small_buffers_lie_side_by_side_where_a_large_one_was() -> None:
    sizes, lives = list[Expr](), dict[int, Life]()
    for level in range(3):
        for _ in range(2**level):
            lives[len(sizes)] = Life(2 * level, 2 * level + 1)
            sizes.append(const((64 << 20) >> level))
    assert _check(sizes, lives, {}) == 64 << 20


@pytest.mark.parametrize("seed", range(10))
def test_the_arena_is_little_larger_than_what_lives_at_once(seed: int) -> None:
    """Of groups that live one after the other, which could all start at 0."""
    rng = random.Random(seed)
    sizes, lives, most = list[Expr](), dict[int, Life](), 0
    for group in range(rng.randrange(2, 8)):
        found = [64 * rng.randrange(1, 4 ** rng.randrange(2, 8)) for _ in range(rng.randrange(1, 12))]
        lives |= {len(sizes) + i: Life(group, group) for i in range(len(found))}
        sizes += map(const, found)
        most = max(most, sum(found))
    assert most <= _check(sizes, lives, {}) <= 1.25 * most
    assert _check(sizes, lives, {}, cores=False) == most


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
    """Of static buffers that share memory, each has its middle where the other has it, if that costs no memory: two live at a time."""
    rng = random.Random(seed)
    others = [rng.choice([200_000, 90_000, 81_000, 3_000, rng.randrange(1, 150_000)]) for _ in range(38)]
    sizes, lives = [200_000, 200_000, *others], {i: Life(i // 2, i // 2) for i in range(40)}
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
