"""GPU kernels of contractions with codes, in the interpreter, against float64: integers, codebooks, two codes a byte."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_interpreted import SM80, SM90, Kernel, roles_of
from low_bit_cases import Linear

from effc.compiler.capture.kernel_reference import evaluate
from effc.compiler.codegen.gpu.contraction.pieces import pieces_of
from effc.compiler.codegen.gpu.nibbles import packed_codes
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.expr import const
from effc.compiler.ir.formats import INT4, NF4, UINT4, Format
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.nibbles import pack_nibbles

CODES = [
    Linear(20, 24, 96, x="bf16"),
    Linear(20, 24, 96, x="f16", zero="i8", scale="f16"),
    Linear(33, 40, 128, group=32, format=INT4, x="bf16", zero="i8"),
    Linear(33, 40, 128, group=64, format=UINT4, x="f16", scale="bf16", turned=True),
    Linear(33, 40, 128, group=32, format=INT4, x="bf16", zero="f32"),
    Linear(20, 24, 96, x="f16", zero="bf16"),
    Linear(20, 24, 96, x="f16", after=True),
    Linear(20, 24, 96, x="bf16", format=NF4),
    Linear(33, 40, 128, group=32, format=NF4, x="bf16", scale="bf16", turned=True),
    Linear(33, 40, 128, group=64, format=NF4, x="bf16", zero="i8"),
    Linear(20, 24, 96, x="f16", format=Format(2, codebook=(-1.0, -0.25, 0.3330078125, 1.0))),
]


def linear_operands(case: Linear) -> list[torch.Tensor]:
    """Random ones: rows, codes, zero points and scales, bias; the result."""
    found: list[torch.Tensor] = []
    spec = case.spec()
    for operand in spec.operands[:-1]:
        count = 1 << 14
        dtype = TORCH_DTYPES[operand.dtype]
        if dtype.is_floating_point:
            found.append((torch.rand(count) + 0.5 if len(found) > 1 else torch.randn(count)).to(dtype))
        else:
            low, high = case.format.limits if case.format else (-128, 127)
            found.append(torch.randint(low, high + 1, (count,), dtype=dtype))
    return [*found, torch.zeros(int(case.m) * case.n)]


@pytest.mark.parametrize("case", CODES, ids=str)
def test_codes_times_rows_of_16_bits_are_exact(case: Linear) -> None:
    """Tensor cores multiply the codes themselves; scales come behind, once or after each group: errors are those of float32."""
    spec = case.spec()
    roles = roles_of(spec)
    assert {roles.left.dtype, roles.right.dtype} == {case.x}
    assert roles.right.group == case.group
    assert roles.right.pieces == (3 if case.format is NF4 else 1)
    tensors = linear_operands(case)
    expected = evaluate(spec, [t.clone() for t in tensors], (), wide=True)
    assert expected is not None
    Kernel(spec)(tensors)
    want = expected[len(tensors) - 1]
    assert (tensors[-1].double() - want).norm() < 2e-6 * want.norm()


@pytest.mark.parametrize("case", [Linear(20, 24, 96, x="f32"), Linear(20, 24, 96, x="f16", format=NF4)], ids=str)
def test_codes_that_are_no_short_integers_are_multiplied_in_float32(case: Linear) -> None:
    spec = case.spec()
    assert {roles_of(spec).left.dtype, roles_of(spec).right.dtype} == {"f32"}
    tensors = linear_operands(case)
    expected = evaluate(spec, [t.clone() for t in tensors], (), wide=True)
    assert expected is not None
    Kernel(spec)(tensors)
    torch.testing.assert_close(tensors[-1].double(), expected[len(tensors) - 1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("format_", [INT4, UINT4, NF4, Format(2), Format(3)], ids=str)
def test_codes_two_a_byte(format_: Format, rows: int) -> None:
    """The same numbers from half of the bytes."""
    case = Linear(rows, 24, 96, group=32, format=format_, x="f16", zero="" if format_.codebook else "i8")
    spec, tensors = case.spec(), linear_operands(case)
    expected = evaluate(spec, [t.clone() for t in tensors], (), wide=True)
    assert expected is not None
    sized = replace(spec, operands=tuple(replace(o, size=const(1 << 14)) for o in spec.operands))
    packed, sizes = packed_codes(sized, range(len(spec.operands)))
    assert sizes == {1: 1 << 14}
    tensors[1] = pack_nibbles(tensors[1], 0, 1 << 14)
    Kernel(packed)(tensors)
    want = expected[len(tensors) - 1]
    assert (tensors[-1].double() - want).norm() < 2e-6 * want.norm()


class FromTheStart(Linear):
    """Codes from the first element of their tensor on."""

    offset = 0


@pytest.mark.parametrize(
    "case",
    [
        Linear(1, 7, 512, group=64, format=INT4, x="bf16", zero="i8"),  # more rows than a tile has, by groups
        Linear(1, 5, 9216, group=32, format=UINT4, x="bf16", zero="f32"),  # more columns
        Linear(1, 3, 33, format=INT4, x="bf16"),  # rows begin within a byte
        Linear(3, 7, 96, group=32, format=INT4, x="f16"),
        FromTheStart(19, 18, 96, group=32, format=INT4, x="bf16", turned=True),
        FromTheStart(19, 17, 96, group=32, format=INT4, x="bf16", turned=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("target", [SM80, SM90], ids=lambda t: t.key)
def test_bytes_of_two_codes_are_read_once(case: Linear, target: GpuTarget) -> None:
    """Where both codes of every byte are neighbours along an axis; else a code at a time, with the same result."""
    spec, tensors = case.spec(), linear_operands(case)
    count = case.offset * case.turned + case.n * case.k
    tensors[1] = tensors[1].repeat(-(-count // len(tensors[1])))[:count].clone()
    expected = evaluate(spec, [t.clone() for t in tensors], (), wide=True)
    assert expected is not None
    operands = tuple(replace(o, size=const(count)) if i == 1 else o for i, o in enumerate(spec.operands))
    packed, _ = packed_codes(replace(spec, operands=operands), [1])
    tensors[1] = pack_nibbles(tensors[1], 0, count)
    kernel = Kernel(packed, target)
    once = case.k % 2 == 0 if not case.turned else case.n % 2 == 0
    assert ("tt.join" in kernel.text) == once
    kernel(tensors)
    want = expected[len(tensors) - 1]
    assert (tensors[-1].double() - want).norm() < 2e-6 * want.norm()


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_numbers_in_pieces_of_16_bits(dtype: str) -> None:
    exact = torch.randn(16).to(TORCH_DTYPES[dtype]).double().tolist()
    assert pieces_of(exact, dtype) == 1
    assert pieces_of([*exact, 1 + 2**-12], dtype) == 2
    assert pieces_of(torch.randn(100).tolist(), "bf16") <= 3
    assert pieces_of(NF4.codebook, "bf16") == 3
    assert pieces_of([1e9], "f16") == 0
    assert pieces_of([3.4e38, 0.0], "bf16") <= 3


def test_an_odd_number_of_codes_is_packed_from_where_they_start() -> None:
    codes = torch.arange(-4, 5, dtype=torch.int8)
    packed = pack_nibbles(codes[1:], 1, 7)
    assert packed.view(torch.uint8).tolist() == [0xFE, 0x10, 0x32, 0x04]


def test_what_is_read_as_more_than_codes_is_not_packed() -> None:
    spec = Linear(4, 24, 96, x="f16").spec()  # int8
    assert packed_codes(spec, range(len(spec.operands)))[1] == {}
