"""Features know what fills a kernel's vectors as the template does: half vectors of few columns, taps that are stacked in a lane."""

from __future__ import annotations

from dataclasses import replace

import pytest
from contraction_cases import Case, packed
from test_contraction_conv import conv_case
from test_contraction_halves import HALVING, WHOLE, product
from test_contraction_stacked import depthwise
from trace_cases import MACHINE

from effc.compiler.codegen.cpu.contraction.cast import cast
from effc.compiler.codegen.cpu.contraction.form import lanes_of
from effc.compiler.codegen.cpu.contraction.stacked import weights_of
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.features.lanes import Lanes
from effc.costmodel.features.nest import Sizes
from effc.costmodel.hardware import Hardware

#: CPUs with what their hardware's description says of them.
SUMMING = Target("summing", 64, HALVING.features | {"avx512_vnni"})
TARGETS = (SUMMING, WHOLE, Target.named("avx512"), Target.named("avx2"))


def machine(target: Target) -> Hardware:
    return replace(MACHINE, vector_bytes=target.vector_bytes, isa=tuple(sorted(target.features)))


def lanes(spec: KernelSpec, target: Target) -> Lanes:
    sizes = Sizes.of(spec, {})
    return Lanes.of(spec, sizes, machine(target), sizes.columns == 1 and sizes.batches > 1)


def check(spec: KernelSpec, target: Target) -> Lanes:
    found, nest = lanes(spec, target), cast(spec, target)
    assert not isinstance(nest, str), nest
    assert found.lanes == lanes_of(nest, target)
    assert found.stacked == max(nest.stacked, 1)
    assert found.steps == (weights_of(nest) if nest.stacked else 0)
    return found


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("n", [2, 3, 8, 9, 16, 20, 24, 40, 41, 56, 72, 88, 1000])
def test_columns_of_products(n: int, dtype: str, target: Target) -> None:
    found = check(packed(product(49, n, 96, dtype).spec(), 1), target)
    assert not found.halved or target.pairs_halves


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("columns", [8, 24, 32])
def test_columns_of_convolutions(columns: int, target: Target) -> None:
    check(packed(conv_case(1, 16, columns, (9, 9), (3, 3)).spec(), 1), target)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize(("dtype", "unsigned"), [("i8", 0), ("bf16", None), ("f32", None)])
@pytest.mark.parametrize("window", [(3, 3), (5, 5), (7, 7), (9, 9), (2, 6), (1, 3)])
def test_depthwise_windows(window: tuple[int, int], dtype: str, unsigned: int | None, target: Target) -> None:
    case: Case = depthwise(dtype, unsigned, window, channels=33)
    check(packed(case.spec(), 1), target)
