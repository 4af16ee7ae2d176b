"""Kernels at sizes of real models, by the schedules that are chosen for them, in the interpreter against float64; borders are uneven."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contraction_cases import Case
from gpu_cases import bytes_of_both_signs, conv, groups, rms_norm, softmax
from gpu_interpreted import SM80, SM90, TMA, Kernel, operands_of, roles_of
from gpu_pairs import OUT, PairCase
from gpu_reference import assert_as_float64, assert_same
from sparse_cases import pruned, sparsity, with_sparsity
from test_attention_kernel import attention_spec

from effc.compiler.codegen.gpu.contraction.schedule import candidates as tilings
from effc.compiler.codegen.gpu.contraction.schedule import chosen
from effc.compiler.codegen.gpu.sparse.choice import derivations, schedules, sparse_spec
from effc.compiler.codegen.gpu.sparse.form import Form, find
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.formats import NF4
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.derive import derive
from effc.runtime.nibbles import pack_nibbles


def linear(m: int, n: int, k: int, dtype: str = "f16") -> KernelSpec:
    """``relu(x w^T + bias)`` in float32."""
    return Case((m, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1, 0), dtype, "f32", (0, 1, 0), True).spec()


@pytest.mark.parametrize("target", [SM80, SM90, TMA], ids=lambda t: t.name)
@pytest.mark.parametrize(
    ("sizes", "kind"),
    [
        ((197, 768, 776), "plain"),
        ((16, 1000, 4104), "split"),
        ((16, 300, 4097), "split"),
        ((1, 200, 4097), "loops"),
        ((577, 1030, 264), "plain"),
    ],
    ids=str,
)
def test_products(sizes: tuple[int, int, int], kind: str, target: GpuTarget) -> None:
    spec = linear(*sizes)
    if kind != "loops":
        assert (chosen(roles_of(spec), target).split > 1) == (kind == "split")
    tensors = operands_of(spec)
    first, again = (tensors[-1].clone() for _ in range(2))
    for result in (first, again):
        assert Kernel(spec, target)([*tensors[:-1], result]) == 0
    assert_as_float64(spec, tensors, {3: first})
    assert torch.equal(first, again), "parts are added in one order"


def test_tile_after_tile_and_a_last_wave_in_parts() -> None:
    """Of as few processors as make waves of these sizes: the schedule is the one that is counted fastest of its kind."""
    spec, target = linear(300, 520, 520), replace(TMA, processors=4)
    found = next(s for s in tilings(roles_of(spec), target, 1000) if s["persistent"] and s["tail"] != 1)
    tiled = replace(spec, schedule=found)
    kernel = Kernel(tiled, target)
    first, *rest = kernel.emitted.launches
    assert (first.grid.constant, len(rest)) == (4, 2)
    tensors = operands_of(spec)
    result = tensors[-1].clone()
    assert kernel([*tensors[:-1], result]) == 0
    assert_as_float64(spec, tensors, {3: result})


@pytest.mark.parametrize("spec", [
    bytes_of_both_signs(197, 520, 1027), conv(64, 57), softmax(3, 50_257), rms_norm(5, 4099),
], ids=["bytes", "convolution", "softmax", "norm"])  # fmt: skip
def test_other_kernels(spec: KernelSpec) -> None:
    tensors = operands_of(spec)
    after = [t.clone() for t in tensors]
    assert Kernel(spec, SM90)(after) == 0
    assert_as_float64(spec, tensors, dict(enumerate(after)))


@pytest.mark.parametrize("format_", ["int4", "NF4"])
@pytest.mark.parametrize("rows", [1, 17])
def test_codes_and_what_infinity_does_to_them(rows: int, format_: str) -> None:
    """It stays in its row, which is not finite."""
    spec = groups(rows, 500, 1024, 128) if format_ == "int4" else groups(rows, 500, 1024, 64, NF4)
    tensors, kernel = operands_of(spec), Kernel(spec, SM90)
    written = next(i for i, o in enumerate(spec.operands) if o.role == "write")
    given = [pack_nibbles(t, 0, t.numel()) if i == 1 else t.clone() for i, t in enumerate(tensors)]
    assert kernel(given) == 0
    clean = given[written].clone()
    assert_as_float64(spec, tensors, {written: clean})
    given[0][7] = float("inf")
    assert kernel(given) == 0
    found, clean = (t.view(rows, 500) for t in (given[written], clean))
    assert not found[0].isfinite().any()
    assert torch.equal(found[1:], clean[1:])


@pytest.mark.parametrize(
    ("sizes", "group", "causal"),
    [
        ((1, 8, 1, 1999, 128, 128), 4, False),
        ((2, 2, 197, 197, 64, 64), 1, False),
        ((1, 2, 300, 300, 128, 128), 2, True),
        ((1, 1, 77, 1030, 80, 80), 1, False),
    ],
    ids=str,
)
def test_attention(sizes: tuple[int, ...], group: int, causal: bool) -> None:
    spec = attention_spec(sizes, dtype="f16", causal=causal, group=group)
    tensors = operands_of(spec)
    result = tensors[3].clone()
    assert Kernel(spec, SM90)([*tensors[:3], result]) == 0
    assert_as_float64(spec, tensors, {3: result})


@pytest.mark.parametrize(
    "case",
    [PairCase(197, 1024, 64, 1000, "f16"), PairCase(197, 96, 384, 96, "bf16", "math.tanh", norm=True)],
    ids=["factors", "mlp"],
)
def test_pairs(case: PairCase) -> None:
    tensors = case.tensors()
    assert Kernel(case.spec(), SM90)(tensors) == 0
    assert_same(tensors[OUT], case.expected(tensors))


@pytest.mark.parametrize(("m", "pattern"), [(1, (16, 1)), (1, (1, 1)), (1, (1, 16)), (197, (32, 32))], ids=str)
def test_products_that_leave_out_zeros(m: int, pattern: tuple[int, int]) -> None:
    n, k = 200, 2050
    weight = pruned(n, k, *pattern, 0.2).half()
    dense = Case((m, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1, 0), "f16", "f32").spec()
    form = find(with_sparsity(dense, sparsity(weight, *pattern)))
    assert isinstance(form, Form), form
    lists = [derive(name, weight, given).flatten() for name, given in derivations(form)]
    x = torch.randn(m, k).half()
    want = (x.double() @ weight.double().T).flatten()
    for schedule in {s["sparse"]: s for s in schedules(form) if m == 1 or s["sparse"] == "tiles"}.values():
        y = torch.full((m * n,), float("nan"))
        spec = sparse_spec(form.spec, schedule, form.weight)
        assert Kernel(spec, SM90)([x.flatten(), lists[0], y, *lists[1:]]) == 0
        assert_same(y, want)
