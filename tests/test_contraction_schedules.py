"""Schedules: every candidate is right, the default comes first, and what does not fit is refused with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from contraction_cases import Case, Runner
from kernels import HOST

from effc.compiler.codegen.cpu.emit import emit
from effc.compiler.codegen.cpu.schedules import MOST, Packing, candidates, default_schedule, packing, supports
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import var
from effc.compiler.ir.spec import Instr, KernelSpec

LINEAR = Case((49, 96, 40), 1, (40, 0, 1), (0, 40, 1), (96, 1, 0), bias=(0, 1))


def test_candidates_begin_with_the_default_and_are_few() -> None:
    spec = LINEAR.spec()
    found = candidates(spec, HOST)
    assert found[0] == default_schedule(spec, HOST)
    assert 4 <= len(found) <= MOST
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("position", [1, 7, 23])
def test_candidates_compute_the_same(position: int) -> None:
    chosen = candidates(LINEAR.spec(), HOST)[position]
    Runner(LINEAR, plan=chosen).check(threads=2)


@pytest.mark.parametrize("name", ["avx512", "avx2", "x86-64"])
def test_a_tile_fits_the_registers(name: str) -> None:
    target = Target.named(name)
    for schedule in candidates(LINEAR.spec(), target):
        vectors = schedule["nr"] // target.lanes(4)
        assert schedule["mr"] * vectors + vectors + 1 <= (32 if target.vector_bytes == 64 else 16)


def test_a_panel_width_that_no_vector_fills_is_refused() -> None:
    with pytest.raises(ValueError, match="nr = 24 is not a multiple of the 16 lanes of avx512"):
        emit(LINEAR.spec().with_schedule(mr=4, nr=24, unroll=4), Target.named("avx512"))


def _second_sum(spec: KernelSpec) -> KernelSpec:
    return replace(spec, body=(*spec.body[:-1], Instr("reduce", (0,), "f32", (("kind", "add"),)), spec.body[-1]))


def _squared_factor(spec: KernelSpec) -> KernelSpec:
    load, *rest = spec.body
    shifted = [replace(i, args=tuple(a + 1 if a else 0 for a in i.args)) for i in rest]
    contract = replace(shifted[1], args=(1, 2))
    return replace(spec, body=(load, Instr("arith.mulf", (0, 0), "f32"), shifted[0], contract, *shifted[2:]))


def _divided_sum(spec: KernelSpec) -> KernelSpec:
    load = spec.body[0]
    address = load["address"].substitute({"d2": var("d2") // 3})
    return replace(spec, body=(replace(load, attributes=(("address", address), ("operand", 0))), *spec.body[1:]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_second_sum, "v0, a factor of contract, is used elsewhere too"),
        (
            _squared_factor,
            "a factor of contract comes from arith.mulf; only a load, plain or with a border of zeros, is taken",
        ),
        (_divided_sum, "an address is not linear in the reduction dimension d2"),
    ],
)
def test_what_is_not_supported_says_why(change: object, reason: str) -> None:
    assert callable(change)
    spec = change(Case((9, 8, 30), 1, (30, 0, 1), (0, 30, 1), (8, 1, 0)).spec())
    assert supports(spec, HOST) == reason
    with pytest.raises(LoweringError, match="this contraction is not supported"):
        emit(spec, HOST)


def test_packing_prefers_the_factor_read_by_columns_and_keeps_its_schedule() -> None:
    found = packing(LINEAR.spec(), [0, 1], HOST)
    assert isinstance(found, Packing)
    assert found.operand == 1
    assert found.spec.operands[1].role == "packed"
    attributes = dict(found.attributes)
    assert attributes["nr"] == found.spec.schedule["nr"]
    assert found.spec.operands[1].size.constant == -(-96 // attributes["nr"]) * attributes["nr"] * 40


def test_packing_says_why_not() -> None:
    assert packing(LINEAR.spec(), [], HOST) == "no factor of the contraction is constant"
    unknown = Case((5, "s0", 40), 1, (40, 0, 1), (0, 40, 1), ("s0", 1, 0)).spec()
    assert packing(unknown, [1], HOST) == "the sizes and strides of the constant factor are not known numbers"
