"""Waterline analysis against cases counted by hand: what kernels move, from how far away, and what fusing a block can gain."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from effc.compiler.ir.errors import InputError
from effc.compiler.ir.expr import Expr, as_expr, const, var
from effc.compiler.ir.program import Call, Input, Output, Pointer, Program, TensorSpec
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand
from effc.costmodel.traffic import Layer, Touch, layers_of
from effc.reporting.bounds import Level, Roof
from effc.reporting.waterline import analyze, residual_blocks

#: 100 operations a second; ten bytes a second from memory, a hundred from a cache of 1000 bytes.
ROOF = Roof(100.0, (Level("cache", 1000, 100.0), Level("memory", math.inf, 10.0)))
N = 100  # elements of a tensor of 400 bytes


def pointer(base: str, index: int = 0, offset: int | Expr = 0) -> Pointer:
    return Pointer(base, index, as_expr(offset))


def pointwise(inputs: int, size: Expr | int = N, scratch: int = 0, stride: int = 1) -> KernelSpec:
    """The negated sum of ``inputs`` tensors: as many operations an element as there are inputs. Of its result every ``stride``-th
    element is written.
    """
    d0, count = var("d0"), as_expr(size)
    body = [Instr("load", (), "f32", (("address", d0), ("operand", i))) for i in range(inputs)]
    value = 0
    for i in range(1, inputs):
        body.append(Instr("arith.addf", (value, i), "f32"))
        value = len(body) - 1
    body.append(Instr("arith.negf", (value,), "f32"))
    body.append(Instr("store", (len(body) - 1,), "", (("address", stride * d0), ("operand", inputs))))
    operands = [Operand("f32", "read", count)] * inputs + [Operand("f32", "write", stride * (count - 1) + 1)]
    operands += [Operand("f32", "scratch", const(scratch))] if scratch else []
    symbols = tuple(sorted(count.variables()))
    return KernelSpec("loops", (Dim(count),), tuple(operands), tuple(body), symbols)


def program(*calls: tuple[KernelSpec, Sequence[Pointer]], inputs: Sequence[str] = ("",), outputs: int = 1) -> Program:
    """``inputs``: the name of each where it is a parameter."""
    specs = tuple(dict.fromkeys(spec for spec, _ in calls))
    tensor = TensorSpec("f32", (const(N),), (const(1),))
    return Program(
        symbols=tuple(sorted({s for spec in specs for s in spec.symbols})),
        inputs=tuple(Input(tensor, name) for name in inputs),
        outputs=(Output(tensor),) * outputs,
        derived=(),
        kernels=specs,
        calls=tuple(
            Call(specs.index(spec), tuple(pointers), tuple(map(var, spec.symbols)), f"k{i}", f"model.py:{i}")
            for i, (spec, pointers) in enumerate(calls)
        ),
        arena_bytes=const(10_000),
    )


def chain() -> tuple[Layer, ...]:
    """x → k0 → arena → k1 → result."""
    made = program(
        (pointwise(1), [pointer("input"), pointer("arena")]),
        (pointwise(1), [pointer("arena"), pointer("output")]),
    )
    return layers_of([(made, {})], ())


def residual() -> tuple[Layer, ...]:
    """x → k0 → a → k1 → b → k2(b, x) → y → k3 → result, where b takes another place of the arena, and y that of a."""
    x, a, b, y = pointer("input"), pointer("arena"), pointer("arena", 0, 400), pointer("arena")
    made = program(
        (pointwise(1), [x, a]),
        (pointwise(1), [a, b]),
        (pointwise(2), [b, x, y]),
        (pointwise(1), [y, pointer("output")]),
    )
    return layers_of([(made, {})], ())


# -- what is touched ------------------------------------------------------------------------------------------------
def test_reuse_distances_of_a_chain() -> None:
    first, second = chain()
    (x, a), (again, result) = first.touches, second.touches
    assert (x.read, x.written, x.since, x.until) == (400, 0, 1200, 1200)  # all that the model touches lies between
    assert (a.read, a.written, a.until, a.kept) == (0, 400, 800, True)  # x and a, then k1 reads it
    assert (again.read, again.since, again.kept) == (400, 800, False)  # the next call writes it anew
    assert (result.written, result.kept) == (400, True)
    assert first.sources == {-1}
    assert second.sources == {0}
    assert (first.is_result, second.is_result) == (False, True)
    assert first.operations == 100
    assert first.location == "model.py:0"


def test_memory_that_several_buffers_share_is_cut_where_they_end() -> None:
    """A buffer of 200 bytes, then one of 400 at the same place: its second half was used longer ago."""
    made = program(
        (pointwise(1, 50), [pointer("input"), pointer("arena")]),
        (pointwise(1), [pointer("input"), pointer("arena")]),
        (pointwise(1), [pointer("arena"), pointer("output")]),
    )
    layers = layers_of([(made, {})], ())
    halves = sorted((t for t in layers[1].touches if t.written), key=lambda t: t.since)
    assert [t.written for t in halves] == [200, 200]
    # the first half since k0: 200 of x and 200 of the arena; the second since k2 of the call before: also 200 more of it and the result
    assert [t.since for t in halves] == [400, 200 + 400 + 400]
    assert not next(t for t in layers[0].touches if t.written).kept  # k1 overwrites it unread


def test_strided_results_count_what_is_written_and_leave_the_rest() -> None:
    """Two kernels each write every second element of one buffer, as into a concatenation, and a third reads all."""
    half = pointwise(1, 50, stride=2)
    made = program(
        (half, [pointer("input"), pointer("arena")]),
        (half, [pointer("input", 0, 200), pointer("arena", 0, 4)]),
        (pointwise(1), [pointer("arena"), pointer("output")]),
    )
    layers = layers_of([(made, {})], ())
    for layer in layers[:2]:
        written = [t for t in layer.touches if t.written]
        assert sum(t.written for t in written) == pytest.approx(200, abs=4)
        assert all(t.kept for t in written)
    assert layers[2].sources == {0, 1}


def test_sizes_take_the_values_of_their_symbols_and_scratch_is_told_apart() -> None:
    spec = pointwise(1, var("s0"), scratch=7)
    made = program((spec, [pointer("input"), pointer("output"), pointer("arena")]))
    (layer,) = layers_of([(made, {"s0": 10})], ())
    assert (layer.operations, layer.scratch) == (10, 28)
    assert sum(t.read + t.written for t in layer.touches) == 80
    (empty,) = layers_of([(made, {"s0": 0})], ())
    assert (empty.operations, empty.touches) == (0, ())


def test_programs_share_parameters_and_nothing_else() -> None:
    made = program((pointwise(2), [pointer("input"), pointer("input", 1), pointer("output")]), inputs=("", "scale"))
    first, second = layers_of([(made, {}), (made, {})], ())
    shared = {t.piece for t in first.touches} & {t.piece for t in second.touches}
    assert len(shared) == 1
    (weight,) = (t for t in second.touches if t.piece in shared)
    assert weight.since == 1200  # the first program's three operands
    assert second.sources == {-2}  # parameters are no sources


def test_an_update_in_place_reads_and_returns_what_it_writes_into() -> None:
    """A cache that the model takes and gives back changed: what it holds is kept, and a reader has the update for its source."""
    d0 = var("d0")
    body = (
        Instr("load", (), "f32", (("address", d0), ("operand", 0))),
        Instr("store", (0,), "", (("address", 10 * d0), ("combine", "set"), ("operand", 1))),
    )
    operands = (Operand("f32", "read", const(10)), Operand("f32", "readwrite", const(N)))
    update = KernelSpec("scatter", (Dim(const(10)),), operands, body)
    made = program(
        (update, [pointer("input"), pointer("output")]),
        (pointwise(1), [pointer("input", 1), pointer("output", 1)]),
        inputs=("", ""),
        outputs=2,
    )
    made = replace(made, outputs=(replace(made.outputs[0], mutates=1), made.outputs[1]))
    first, second = layers_of([(made, {})], ())
    (touch,) = (t for t in first.touches if t.written)
    assert (touch.read, touch.written, touch.kept) == (40, 40, True)
    assert first.is_result
    assert second.sources == {0}


def test_no_kernels() -> None:
    assert layers_of([], ()) == ()
    assert layers_of([(program(), {})], ()) == ()


# -- the analysis ---------------------------------------------------------------------------------------------------
def test_a_chain_apart_and_fused() -> None:
    """x and the result are in memory (1200 bytes lie between their uses), what is between in the cache (800); what is written is fetched
    first.
    """
    water = analyze(chain(), ROOF, [(0, 2)])
    assert [s.traffic for s in water.layers] == [(800, 400), (400, 800)]
    assert [s.compute for s in water.layers] == [1.0, 1.0]
    assert [s.attainable for s in water.layers] == [48.0, 84.0]  # 800 / 100 + 400 / 10, 400 / 100 + 800 / 10
    assert all(s.is_under_water for s in water.layers)
    (block,) = water.blocks
    assert (block.traffic, block.operations, block.attainable) == ((0, 1200), 200, 120.0)
    assert (block.intensity, block.name) == (200 / 1200, "k0, k1")
    assert (water.apart, water.fused, water.ceiling) == (132.0, 120.0, 1.1)
    assert water.measured is None


def test_arithmetic_and_memory_of_different_kernels_meet_in_a_block() -> None:
    """Apart, one waits for arithmetic and the other for memory; together, the larger of the sums is left."""
    busy = Layer("busy", "", 0, 1000, 1.0, 0, (Touch(0, 10, 0, 5000, 5000, True),), seconds=12.0)
    moving = Layer("moving", "", 0, 50, 1.0, 0, (Touch(1, 90, 0, 5000, 5000, True),), seconds=10.0)
    water = analyze([busy, moving], ROOF, [(0, 2)])
    assert (water.apart, water.fused) == (10.0 + 9.0, 10.5)
    assert [s.is_under_water for s in water.layers] == [False, True]
    assert water.measured == 22.0
    assert analyze([busy, Layer("", "", 0, 0, 1.0, 0, ())], ROOF).measured is None  # one has no time


def test_arithmetic_of_a_faster_dtype() -> None:
    fast = Layer("products", "", 0, 1000, 4.0, 0, (Touch(0, 10, 0, 5000, 5000, True),))
    assert analyze([fast], ROOF).apart == 2.5


def test_a_block_reads_its_input_once_and_keeps_what_others_read() -> None:
    water = analyze(residual(), ROOF, [(0, 3)])
    block, last = water.blocks
    assert block.bytes == 400 + 2 * 400  # x and y
    assert sum(s.bytes for s in water.layers[:3]) == 400 * (3 + 3 + 4)
    assert block.operations == 100 + 100 + 200
    assert (last.first, last.end) == (3, 4)


def test_without_blocks_nothing_is_gained() -> None:
    water = analyze(residual(), ROOF, [])
    assert water.ceiling == 1.0
    assert water.layers == water.blocks


@pytest.mark.parametrize("blocks", [None, [], [(0, 2)], [(1, 4)], [(0, 4)]])
def test_no_blocks_gain_more_than_one_kernel_of_all_layers(blocks: list[tuple[int, int]] | None) -> None:
    """It reads x and writes the result, 800 bytes from memory and 400 of them twice."""
    water = analyze(residual(), ROOF, blocks)
    assert water.least == 120.0
    assert water.limit == water.apart / 120.0
    assert water.ceiling <= water.limit
    assert f"120000000.0 all as one: {water.limit:.2f}" in str(water)


def test_blocks_are_found_by_their_shortcuts() -> None:
    assert residual_blocks(residual()) == [(0, 3)]
    assert residual_blocks(chain()) == []
    assert residual_blocks([]) == []


def graph(*sources: set[int], results: Sequence[int] = ()) -> list[Layer]:
    return [Layer("", "", 0, 1, 1.0, 0, (), frozenset(s), i in results) for i, s in enumerate(sources)]


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        (graph({-1}, {0}, {1}, {2, 0}, {3}, {4, 3}), [(1, 4), (4, 6)]),  # one block after another
        (graph({-1}, {0}, {0}, {1, 2}, {3}), [(1, 4)]),  # the shortcut is a layer
        (graph({-1}, {0}, {0, 1}, {1}, {2, 3}), [(1, 5)]),  # an inner result is read after the sum: the block goes on
        (graph({-1}, {0}, {0, 1}, results=(1,)), []),  # an inner result is returned
        (graph(*({i - 1, -2} for i in range(3)), {2, 1, -2}, *({i - 1, -2} for i in range(4, 8))), [(2, 4)]),  # a mask
        (graph({-1}, *({i - 1} for i in range(1, 20)), {19, 0}), []),  # most of a model
        (graph({-1}, {0}, {1}, {2, 1}, {3, 0}), [(1, 5)]),  # the outer of two that are nested
    ],
)
def test_blocks_of_small_graphs(layers: list[Layer], blocks: list[tuple[int, int]]) -> None:
    assert residual_blocks(layers) == blocks


@pytest.mark.parametrize("blocks", [[(0, 5)], [(1, 1)], [(0, 2), (1, 3)], [(2, 3), (0, 1)], [(-1, 2)]])
def test_blocks_that_cannot_be(blocks: list[tuple[int, int]]) -> None:
    with pytest.raises(InputError, match=r"do not overlap, and lie among the 4 layers"):
        analyze(residual(), ROOF, blocks)


@pytest.mark.parametrize("levels", [(), (Level("cache", 10, 1.0),), (Level("a", math.inf, 1.0), Level("b", 10, 1.0))])
def test_levels_that_cannot_be(levels: tuple[Level, ...]) -> None:
    with pytest.raises(InputError, match="in ascending order, the last infinite"):
        Roof(1.0, levels)


@pytest.mark.parametrize(("peak", "bandwidth"), [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_speeds_that_cannot_be(peak: float, bandwidth: float) -> None:
    with pytest.raises(InputError, match="all are positive and finite"):
        Roof(peak, (Level("memory", math.inf, bandwidth),))


# -- how it is shown ------------------------------------------------------------------------------------------------
def texts(path: Path) -> str:
    return "\n".join(e.text for e in ElementTree.parse(path).iter() if e.text and e.text.strip())


def test_the_table_and_the_picture_name_kernels_levels_and_the_ceiling(tmp_path: Path) -> None:
    water = analyze(residual(), ROOF)
    table = str(water)
    assert "0-2" in table
    assert "model.py:1" in table
    assert f"ceiling {water.ceiling:.2f}" in table
    water.to_svg(tmp_path / "water.svg", "a <block>")
    shown = texts(tmp_path / "water.svg")
    assert "a <block>" in shown
    assert "memory, 10" in shown  # 100 operations over 10 bytes a second
    assert "a block as one kernel" in shown
    assert f"ceiling {water.ceiling:.2f}" in shown


@pytest.mark.parametrize("layers", [[], [Layer("nothing", "", 0, 0, 1.0, 0, ())]])
def test_nothing_to_do_is_shown_too(layers: list[Layer], tmp_path: Path) -> None:
    water = analyze(layers, ROOF)
    assert (water.apart, water.fused, water.least, water.ceiling, water.limit) == (0.0, 0.0, 0.0, 1.0, 1.0)
    assert "ceiling 1.00" in str(water)
    water.to_svg(tmp_path / "water.svg")
    assert "ceiling 1.00" in texts(tmp_path / "water.svg")
