"""The counts behind the features: of a tile's step, of what data cost beside arithmetic, and of the code that is written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kernels import HOST, Kernel, LoopsBuilder
from test_attention_kernel import attention_spec
from test_contraction_conv import conv_case
from test_costmodel import gemm
from trace_cases import MACHINE

from effc.collecting import code_facts
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel import features
from effc.costmodel.hardware import Hardware

pytest.importorskip("capstone", reason="the facts of code need the extra 'costmodel'")

#: A core of 256-bit vectors; one whose 512-bit units sum pairs of bfloat16.
AVX2 = replace(MACHINE, vector_bytes=32, isa=("avx2", "fma"))
PAIRS = replace(MACHINE, isa=("avx512_bf16", "avx512f"))


def row(spec: KernelSpec, hardware: Hardware = MACHINE) -> dict[str, float]:
    (values,) = features.matrix([(spec, ())], hardware, 1)
    return dict(zip(features.COLUMNS, map(float, values), strict=True))


def counted(spec: KernelSpec, hardware: Hardware = MACHINE, column: str = "log_core_time") -> float:
    return float(2.0 ** row(spec, hardware)[column] - 1)


def packed(spec: KernelSpec) -> KernelSpec:
    """``spec`` with its second operand packed."""
    listed = list(spec.operands)
    listed[1] = replace(listed[1], role="packed")
    return replace(spec, operands=tuple(listed))


def tiled(spec: KernelSpec, mr: int, nr: int, order: str = "panels") -> KernelSpec:
    return spec.with_schedule(mr=mr, nr=nr, order=order, touch=0, unroll=4)


def windows(channels: int) -> KernelSpec:
    """Of a depthwise convolution, 3 x 3."""
    return packed(conv_case(1, channels, channels, (30, 30), (3, 3), groups=channels).spec())


def pointwise(columns: int, op: str = "math.exp") -> KernelSpec:
    k = LoopsBuilder(
        [(96, "parallel"), (columns, "parallel")], [("f32", role, 96 * columns) for role in ("read", "write")]
    )
    k.store(1, f"{columns + 1}*d0 + d1", k.op(op, k.load(0, f"{columns + 1}*d0 + d1")))  # lines that do not meet
    return k.spec()


def test_pairs_of_bf16_pay_for_their_broadcasts() -> None:
    spec = packed(gemm(96, 256, 512, "bf16"))
    narrow, wide = (counted(tiled(spec, 8, nr), PAIRS) for nr in (16, 32))
    assert narrow > 1.2 * wide


def test_conversions_run_beside_multiply_adds() -> None:
    spec = gemm(96, 192, 512, "bf16")
    one, three = (counted(tiled(spec, 8, nr)) for nr in (16, 48))
    assert one > 1.3 * three  # a row is converted for each panel
    single = counted(tiled(gemm(96, 192, 512), 8, 48))
    assert single < three < 1.4 * single


def test_masked_vectors_of_two_bytes_are_picked_up_on_avx2() -> None:
    whole, ragged = (counted(tiled(gemm(64, n, 128, "bf16"), 4, 16), AVX2) for n in (256, 257))
    assert ragged > 2 * whole
    whole, ragged = (counted(tiled(gemm(64, n, 128, "bf16"), 4, 32)) for n in (256, 257))
    assert ragged < 1.3 * whole  # AVX-512 has masks


def test_converted_pairs_take_registers_on_avx2() -> None:
    def step(dtype: str, nr: int) -> float:
        return row(tiled(packed(gemm(96, 192, 512, dtype)), 4, nr), AVX2)["step_cycles"]

    assert step("bf16", 24) / step("bf16", 16) > 24 / 16 > step("f32", 24) / step("f32", 16)


def test_vectors_of_half_a_line_leave_the_other_half_to_a_later_panel() -> None:
    spec = windows(64)
    narrow, whole = (counted(tiled(spec, 4, nr), AVX2) for nr in (8, 16))
    assert narrow > 1.05 * whole
    assert counted(tiled(spec, 4, 16)) == pytest.approx(counted(tiled(spec, 4, 32)), rel=0.2)  # whole lines of AVX-512


def test_functions_take_longer_on_avx2() -> None:
    cheap, dear = (counted(pointwise(512, op), AVX2) for op in ("math.absf", "math.exp"))
    other = [counted(pointwise(512, op)) for op in ("math.absf", "math.exp")]
    assert dear / cheap > 1.2 * other[1] / other[0]


def test_weights_are_waited_for_where_rows_are_outside() -> None:
    spec = packed(gemm(96, 2048, 1024))
    by_panels, by_rows = (counted(tiled(spec, 12, 32, order), column="log_counted") for order in ("panels", "rows"))
    assert by_rows > by_panels


def test_zeros_are_left_out_by_sparse_schedules_alone() -> None:
    spec = packed(gemm(128, 256, 512))
    listed = list(spec.operands)
    listed[1] = replace(listed[1], sparsity=Sparsity(1, 1, 256 * 512 // 10))
    tenth = replace(spec, operands=tuple(listed))
    dense = counted(tiled(spec, 8, 32))
    assert counted(tiled(tenth, 8, 32)) == pytest.approx(dense)
    by_rows = tenth.with_schedule(sparse="rows", height=4, parts=1, sets=2, shares=1)
    assert counted(by_rows) < 0.7 * dense
    fuller = replace(
        tenth, operands=(listed[0], replace(listed[1], sparsity=Sparsity(1, 1, 256 * 512 // 2)), listed[2])
    )
    assert counted(replace(fuller, schedule=by_rows.schedule)) > 1.5 * counted(by_rows)


def test_a_rest_of_a_strip_has_code_of_its_own() -> None:
    whole, ragged = (counted(pointwise(columns), column="log_code") for columns in (1024, 1031))
    assert ragged > whole + 5


@pytest.mark.parametrize("columns", [1024, 1031, 40])
@pytest.mark.parametrize("op", ["math.exp", "math.absf"])
def test_counted_code_is_near_what_is_compiled(columns: int, op: str) -> None:
    spec = pointwise(columns, op)
    machine = MACHINE if HOST.vector_bytes == 64 else AVX2
    real = code_facts.facts(Kernel(spec).object).instructions
    assert real / 3 < counted(spec, machine, "log_code") < 3 * real


@pytest.mark.skipif(not HOST.has("avx512f"), reason="counted for AVX-512")
@pytest.mark.parametrize(
    ("m", "k", "mr", "nr"), [(96, 64, 8, 32), (8, 512, 1, 32), (7, 100, 4, 48), (64, 1024, 14, 16)]
)
def test_counted_code_of_a_product_is_near_what_is_compiled(m: int, k: int, mr: int, nr: int) -> None:
    spec = tiled(packed(gemm(m, 96, k)), mr, nr)
    real = code_facts.facts(Kernel(spec).object).instructions
    assert 0.6 * real < counted(spec, column="log_code") < 1.6 * real


def test_threads_are_code_where_work_is_worth_two() -> None:
    small, large = (counted(tiled(gemm(m, 64, 256), 8, 32), column="log_code") for m in (8, 512))
    assert large > small + 100


def test_attention_has_more_code_where_keys_are_left_or_hidden() -> None:
    def code(queries: int, keys: int, *, causal: bool = False) -> float:
        return counted(attention_spec((1, 4, queries, keys, 64, 64), causal=causal), column="log_code")

    assert code(128, 128, causal=True) > code(128, 128)
    assert code(128, 200) > code(128, 256)
    assert code(129, 128) > code(128, 128)  # a block of one vector
    assert code(1, 256) < code(128, 256)
