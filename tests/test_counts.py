"""What the features count of a product's code: borders, chains of sums, steps that are written out, and what comes again from a cache."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from test_contraction_conv import conv_case
from test_costmodel import gemm
from test_features import row
from torch import nn

from effc.collecting.found import kernels
from effc.compiler.codegen.cpu.contraction.chains import block
from effc.compiler.codegen.cpu.contraction.chains import chain_length as usual
from effc.compiler.codegen.cpu.contraction.roles import Nest, find
from effc.compiler.codegen.cpu.contraction.tile import unroll_of
from effc.compiler.ir.expr import const
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.features import chains, unrolled
from effc.costmodel.features.nest import Sizes


def depthwise(channels: int, size: int, taps: int, stride: int, padding: int) -> KernelSpec:
    """The kernel of a depthwise layer behind another one, from which it reads without a copy that fills its borders."""
    layers = nn.Conv2d(8, channels, 1), nn.Conv2d(channels, channels, taps, stride, padding, groups=channels)
    found = kernels(nn.Sequential(*layers).eval(), (torch.randn(1, 8, size, size),), Options())
    (spec,) = (
        s for f in found for s in (f.spec, *f.spec.stages) if s.template == "contraction" and row(s)["depthwise"]
    )
    return spec


@pytest.mark.parametrize(("size", "taps", "stride"), [(7, 3, 1), (14, 3, 2), (9, 5, 1), (11, 7, 2), (5, 7, 1)])
def test_products_outside_a_border_are_not_counted(size: int, taps: int, stride: int) -> None:
    padding = taps // 2
    border = Sizes.of(depthwise(16, size, taps, stride, padding), {}).border
    places = range((size + 2 * padding - taps) // stride + 1)
    inside = [[0 <= stride * p + t - padding < size for t in range(taps)] for p in places]
    assert border.inside == pytest.approx(np.mean(inside) ** 2)
    low = [not line[0] for line in inside]
    high = [not line[-1] for line in inside]
    assert (border.first, border.last) == (sum(low), sum(h and not b for h, b in zip(high, low, strict=True)))
    assert border.elsewhere


def test_without_padding_everything_is_inside() -> None:
    border = Sizes.of(depthwise(16, 9, 3, 1, 0), {}).border
    assert (border.inside, border.first, border.last, border.elsewhere) == (1.0, 0, 0, False)


def sums() -> list[tuple[int, ...]]:
    draw = np.random.default_rng(3)
    known = [(1,), (96,), (97,), (192,), (193,), (3, 3, 64), (7, 7), (5, 5, 193), (2, 4096)]
    return [*known, *(tuple(int(n) for n in draw.integers(1, 300, size=draw.integers(1, 4))) for _ in range(200))]


@pytest.mark.parametrize("packed", [True, False])
def test_chains_are_those_of_the_template(packed: bool) -> None:
    for sizes in sums():
        exprs = [const(n) for n in sizes]
        cuts = ((at, block(exprs[at:], usual(packed))) for at in range(len(sizes)))
        at, length = next(((at, found) for at, found in cuts if found), (0, sizes[0]))
        assert chains.chain(sizes, packed) == length * prod(sizes[at + 1 :]), sizes


@pytest.mark.parametrize(("steps", "group"), list(product((1, 3, 8, 9, 12, 13, 37, 60), (1, 2))))
def test_steps_are_written_out_as_the_template_does(steps: int, group: int) -> None:
    whole = steps // group
    unroll = unroll_of(whole, 4)
    found = loops((steps,), group=group)
    assert found["loop_body"] + found["loop_left"] == unroll * (whole >= unroll) + whole % unroll + (steps % group > 0)
    assert found["loop_body"] * found["loop_turns"] + found["loop_left"] == whole + (steps % group > 0)


def loops(sums: tuple[int, ...], *, group: int = 1, cut: bool = True) -> dict[str, int]:
    return dict(zip(chains.LOOPS, chains.loops(sums, True, group, cut), strict=True))


def test_what_is_left_of_a_long_sum_has_code_of_its_own() -> None:
    even, prime = loops((256,)), loops((257,))
    assert (even["loop_chains"], even["rest_body"]) == (2, 0)
    assert (prime["loop_chains"], prime["rest_body"]) == (2, 1)  # 2 x 128 and a step
    taps = loops((257, 3))
    assert [taps[name] for name in ("loop_body", "loop_middle", "loop_chains")] == [3, 42, 6]
    assert [taps[name] for name in ("rest_body", "rest_middle")] == [3, 5]


@pytest.mark.parametrize("cut", [True, False])
def test_loops_hold_every_step_once(cut: bool) -> None:
    for sizes in sums():
        found = loops(sizes, cut=cut)
        each = [
            (found[f"{p}_body"] * found[f"{p}_turns"] + found[f"{p}_left"])
            * found[f"{p}_middle"]
            * found[f"{p}_middle_outer"]
            for p in ("loop", "rest")
        ]
        around = found["loop_outer"] * found["loop_outermost"]
        assert (each[0] * found["loop_chains"] + each[1]) * around == prod(sizes), sizes


def test_low_precision_is_one_chain() -> None:
    single, narrow = (Sizes.of(gemm(8, 16, 1024, dtype), {}) for dtype in ("f32", "bf16"))
    assert single.cut
    assert not narrow.cut


@pytest.mark.parametrize(
    "spec",
    [
        gemm(8, 16, 96),
        conv_case(1, 16, 24, (9, 9), (3, 3)).spec(),
        conv_case(2, 16, 24, (9, 9), (3, 3), stride=2, dilation=2).spec(),
        conv_case(1, 5, 24, (9, 9), (1, 1)).spec(),
        conv_case(1, 16, 24, (9, 9), (3, 3), last=False).spec(),
        conv_case(1, 1, 24, (9, 9), (3, 1)).spec(),
    ],
)
def test_sums_that_lie_behind_each_other_are_one(spec: KernelSpec) -> None:
    nest = find(spec)
    assert isinstance(nest, Nest)
    expected = [size for k in nest.reduction if (size := nest.spec.dims[k].size.constant) != 1]
    assert list(Sizes.of(spec, {}).summed) == expected


def test_small_loops_are_written_out() -> None:
    size, turns = np.array([10.0, 10.0, 200.0, 1.0]), np.array([8.0, 400.0, 8.0, 1.0])
    assert unrolled.whole(size, turns).tolist() == [8, 1, 1, 1]
    assert unrolled.repeated(size, turns).tolist() == [8, 10, 1, 1]
    assert unrolled.repeated(np.array([30.0]), np.array([7.0])).tolist() == [
        2 + 1
    ]  # no divisor fits: pairs, and the last


def test_many_channels_come_again_from_the_next_cache() -> None:
    def streamed(channels: int) -> float:
        return float(2 ** row(depthwise(channels, 28, 3, 1, 0))["log_streamed"] - 1)

    assert streamed(16) == pytest.approx(0, abs=1e-3)  # lines of a window wait in L1
    assert streamed(1024) > 3 * 4 * 1024 * 26 * 26
