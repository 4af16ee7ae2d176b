"""Products of few columns by half vectors: where these cost no more, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from contraction_cases import Case, Runner, packed
from kernels import HOST
from test_contraction_conv import conv_case

from effc.compiler.codegen.cpu.schedules import candidates, default_schedule
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import Instr, KernelSpec

#: Of a CPU that takes two cycles for a multiply-add of 512 bits; and one that has no tile registers, but takes one cycle.
HALVING = Target("zen4", 64, Target.named("avx512").features | {"avx512_bf16"})
WHOLE = Target("zen5", 64, HALVING.features | {"avx_vnni"})


def product(m: int, n: int, k: int, dtype: str = "f32") -> Case:
    return Case((m, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1, 0), dtype, "f32", bias=(0, 1), relu=True)


def columns(spec: KernelSpec, target: Target) -> int:
    return int(default_schedule(packed(spec, 1), target)["nr"])


@pytest.mark.parametrize(("n", "panel"), [(3, 8), (8, 8), (20, 24), (24, 24), (40, 40), (72, 24)])
def test_few_columns_come_in_half_vectors(n: int, panel: int) -> None:
    assert columns(product(196, n, 96).spec(), HALVING) == panel
    for target in (WHOLE, Target.named("avx512")):
        assert columns(product(196, n, 96).spec(), target) % 16 == 0


@pytest.mark.parametrize("n", [9, 16, 32, 64, 96, 88, 1000])
def test_whole_vectors_where_they_are_filled(n: int) -> None:
    assert columns(product(196, n, 96).spec(), HALVING) % 16 == 0


def test_whole_vectors_in_other_dtypes() -> None:
    assert columns(product(196, 24, 96, "bf16").spec(), HALVING) % 16 == 0


def test_whole_vectors_before_a_function() -> None:
    """Of the vector math library, whose functions of whole ones are the faster."""
    spec = product(196, 24, 96).spec()
    *body, store = spec.body
    longer = replace(spec, body=(*body, Instr("math.exp", (len(body) - 1,), "f32"), replace(store, args=(len(body),))))
    assert columns(longer, HALVING) % 16 == 0


needs_halves = pytest.mark.skipif(not HOST.pairs_halves, reason="on this CPU whole vectors cost no more than halves")


@needs_halves
@pytest.mark.parametrize("m", [1, 2, 13, 63])
@pytest.mark.parametrize("n", [2, 7, 8, 20, 24, 40, 56, 67])
def test_halves_compute_the_product(m: int, n: int) -> None:
    Runner(product(m, n, 37), pack=1).check(threads=2)


@needs_halves
@pytest.mark.parametrize("n", [8, 24])
def test_halves_under_every_schedule(n: int) -> None:
    case = product(29, n, 19)
    for schedule in candidates(packed(case.spec(), 1), HOST):
        Runner(case, pack=1, plan=schedule).check(threads=2)


@needs_halves
def test_halves_of_a_convolution() -> None:
    Runner(conv_case(2, 5, 24, (9, 11), (3, 3)), pack=1).check(threads=2)
