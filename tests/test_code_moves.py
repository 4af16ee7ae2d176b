"""Between the kernels of quantized models go bytes: through concatenation, pooling, padding, reshapes; and what cancels is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # defines the ops
from torch import Tensor, nn
from torch.nn import functional as F

from effc.compiler.capture.recording import record
from effc.compiler.ir.program import Program

Q = torch.ops.quantized_decomposed
U8 = (0, 255, torch.uint8)
S8 = (-128, 127, torch.int8)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(7)


def fake(x: Tensor, scale: float, zero: int, how: tuple[int, int, torch.dtype] = U8) -> Tensor:
    """Quantized and dequantized."""
    result: Tensor = Q.dequantize_per_tensor(Q.quantize_per_tensor(x, scale, zero, *how), scale, zero, *how)
    return result


def run(function: Callable[..., Any], *inputs: Tensor, dynamic: bool = False) -> tuple[Any, Program]:
    compiled = torch.compile(function, backend="effc", options={"fallback": "error"}, dynamic=dynamic)
    with record() as recording, torch.no_grad():
        result = compiled(*inputs)
    ((program, _),) = recording.programs
    return result, program


def buffers(program: Program) -> set[str]:
    """The dtypes of what the kernels write for each other."""
    return {
        operand.dtype
        for call in program.calls
        for operand, pointer in zip(program.kernels[call.kernel].operands, call.pointers, strict=True)
        if pointer.base == "arena" and operand.role != "scratch"
    }


def rounds(program: Program) -> int:
    """How many values kernels quantize."""
    return sum(i.op == "math.roundeven" for c in program.calls for i in program.kernels[c.kernel].body)


def close(got: Tensor, expected: Tensor, step: float) -> None:
    """Equal, but for steps of a quantization where the rounding of a sum decides a tie."""
    assert got.shape == expected.shape
    apart = (got - expected).abs() / step
    assert apart.max() <= 1.01
    assert (apart > 1e-3).float().mean() < 1e-2


class Weight(nn.Module):
    """Codes of a convolution's weight."""

    codes: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer(
            "codes", torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(1)).to(torch.int8)
        )

    def forward(self) -> Tensor:
        result: Tensor = Q.dequantize_per_tensor(self.codes, 0.003, 0, *S8)
        return result


A, B, WIDE = Weight(8, 6, 3, 3), Weight(8, 6, 1, 1), Weight(8, 16, 1, 1)


@pytest.mark.parametrize("how", [U8, S8])
def test_concat_of_one_scale(how: tuple[int, int, torch.dtype]) -> None:
    first, zero = (99, 120) if how is U8 else (4, -5)

    def function(x: Tensor) -> Tensor:
        x = fake(x, 0.03, first, how)
        parts = [F.conv2d(x, A(), padding=1), F.relu(F.conv2d(x, B()))]
        y = fake(torch.cat([fake(p, 0.05, zero, how) for p in parts], 1), 0.05, zero, how)
        return fake(F.max_pool2d(y, 3, 2, 1), 0.05, zero, how).flatten(1)

    x = torch.randn(2, 6, 9, 7)
    got, program = run(function, x)
    assert buffers(program) == {"i8"}
    assert rounds(program) == 3  # of x and of both parts, no more
    close(got, function(x), 0.05)


def test_concat_of_several_scales() -> None:
    """What is quantized behind the concatenation is quantized before it, by the kernels that compute it."""

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        x = fake(x, 0.03, 99)
        y = torch.cat([fake(F.conv2d(x, A(), padding=1), 0.05, 120), fake(F.conv2d(x, B()), 0.07, 128), x], 1)
        return fake(y, 0.08, 110), fake(y, 0.05, 120, S8)

    x = torch.randn(2, 6, 9, 7)
    got, program = run(function, x)
    assert buffers(program) <= {"i8"}
    assert all("f32" not in {o.dtype for o in k.operands if o.role == "write"} for k in program.kernels[:-2])
    for ours, eager, step in zip(got, function(x), (0.08, 0.05), strict=True):
        close(ours, eager, step)


def test_concat_that_is_read_in_floats_too() -> None:
    """As DenseNet reads it: normalised, and quantized for another layer."""
    scale, shift = torch.rand(16, 1, 1), torch.randn(16, 1, 1)

    def function(x: Tensor) -> Tensor:
        x = fake(x, 0.03, 99)
        y = torch.cat([fake(F.conv2d(x, A(), padding=1), 0.05, 120), fake(F.conv2d(x, B()), 0.05, 120)], 1)
        z = fake(F.relu(y * scale + shift), 0.04, 0)
        return F.conv2d(z, WIDE()) + F.conv2d(fake(y, 0.05, 120), WIDE())

    x = torch.randn(2, 6, 9, 7)
    got, program = run(function, x)
    stored = [o.dtype for k in program.kernels for o in k.operands if o.role == "write"]
    assert stored.count("f32") <= 3  # both terms of the result, and its copy into planes
    # A code of y that is one off is 0.05 off, and so at most two codes of z, for no scale is above 1: each times a weight.
    close(got, function(x), (0.05 + 2 * 0.04) * float(WIDE().abs().max()))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        lambda x: F.adaptive_avg_pool2d(x, 4),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: F.pad(x, (1, 2, 0, 1)).transpose(1, 2).flatten(2) * 0.5,
        lambda x: F.pixel_shuffle(x, 2).abs(),
    ],
)
def test_what_pools_and_rearranges_reads_bytes(pool: Callable[[Tensor], Tensor]) -> None:
    def function(x: Tensor) -> Tensor:
        x = fake(F.conv2d(fake(x, 0.03, 99), A(), padding=1), 0.05, 120)
        return fake(pool(x), 0.02, 100)

    x = torch.randn(2, 6, 9, 7)
    got, program = run(function, x)
    assert buffers(program) == {"i8"}
    close(got, function(x), 0.02)


@pytest.mark.parametrize("how", [U8, S8])
def test_bfloat16(how: tuple[int, int, torch.dtype]) -> None:
    first, zero = (99, 120) if how is U8 else (4, -5)

    def between(x: Tensor, scale: float, zero: int) -> Tensor:
        codes = Q.quantize_per_tensor(x, scale, zero, *how)
        result: Tensor = Q.dequantize_per_tensor(codes, scale, zero, *how, out_dtype=torch.bfloat16)
        return result

    def function(x: Tensor) -> Tensor:
        x = between(x, 0.03, first)
        parts = [F.conv2d(x, A().bfloat16(), padding=1), F.relu(F.conv2d(x, B().bfloat16()))]
        y = between(torch.cat([between(p, 0.05, zero) for p in parts], 1), 0.05, zero)
        return F.avg_pool2d(F.max_pool2d(y, 3, 2, 1), 2).flatten(1)

    x = torch.randn(2, 6, 9, 7).bfloat16()
    got, program = run(function, x)
    assert buffers(program) == {"i8"}
    assert rounds(program) == 3
    assert [i.dtype for k in program.kernels for i in k.body if i.op == "contract"] == ["i32", "i32"]
    expected = function(x)
    assert (got - expected).abs().max() <= 0.1 + 0.01 * expected.abs().max()


# -- quantizations that undo dequantizations --------------------------------------------------------------------------
def spelled(codes: Tensor, scale: float, zero: int) -> Tensor:
    """There and back, in other operations than torch's."""
    x = codes.to(torch.float32) * scale - zero * scale
    return (x / scale + zero).round().clamp(-128, 127).to(torch.int8)


@pytest.mark.parametrize("scale", [1e-30, 0.1, 0.0123, 3e4])
@pytest.mark.parametrize("zero", [-128, -3, 0, 127])
def test_there_and_back_is_nothing(scale: float, zero: int) -> None:
    def function(codes: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        back = Q.quantize_per_tensor(Q.dequantize_per_tensor(codes, scale, zero, *S8), scale, zero, *S8)
        return back + 1, spelled(codes, scale, zero) + x

    codes, x = torch.arange(-128, 128).to(torch.int8), torch.ones((), dtype=torch.int8)
    got, program = run(function, codes, x)
    for ours, eager in zip(got, function(codes, x), strict=True):
        assert torch.equal(ours, eager)
    assert rounds(program) == 0


@pytest.mark.parametrize("how", [(0.05, 3, S8), (0.051, 2, S8), (0.05, 2, (-127, 127, torch.int8)), (1e-42, 2, S8)])
def test_another_scale_or_range_is_one_kernel_of_bytes(how: tuple[float, int, tuple[int, int, torch.dtype]]) -> None:
    scale, zero, limits = how

    def function(codes: Tensor) -> Tensor:
        result: Tensor = Q.quantize_per_tensor(Q.dequantize_per_tensor(codes, 0.05, 2, *S8), scale, zero, *limits)
        return result

    codes = torch.arange(-128, 128).to(torch.int8)
    got, program = run(function, codes)
    assert torch.equal(got, function(codes))
    (kernel,) = program.kernels
    assert {o.dtype for o in kernel.operands} == {"i8"}
    assert rounds(program) == 1


def test_a_result_may_be_an_input() -> None:
    def function(codes: Tensor) -> Tensor:
        result: Tensor = Q.quantize_per_tensor(Q.dequantize_per_tensor(codes, 0.05, 2, *S8), 0.05, 2, *S8)
        return result

    codes = torch.randint(-128, 128, (5, 7)).to(torch.int8)
    compiled = torch.compile(function, backend="effc")
    got = compiled(codes)
    assert torch.equal(got, codes)
    assert got.data_ptr() != codes.data_ptr()


@pytest.mark.parametrize("value", [0.0, 0.31, -7.0])
def test_a_border_is_quantized_too(value: float) -> None:
    def function(x: Tensor) -> Tensor:
        y = F.pad(F.conv2d(fake(x, 0.03, 99), A(), padding=1), (1, 2, 0, 3), value=value)
        return fake(y, 0.02, 100)

    x = torch.randn(2, 6, 9, 7)
    got, program = run(function, x)
    assert buffers(program) == {"i8"}
    close(got, function(x), 0.02)


def test_floats_that_another_reads_stay() -> None:
    """The concatenation is also returned: it is not quantized ahead."""

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.cat([torch.sin(x), torch.cos(x)], 1)
        return y, fake(y, 0.02, 100)

    x = torch.randn(2, 6, 9)
    got, _ = run(function, x)
    for ours, eager in zip(got, function(x), strict=True):
        torch.testing.assert_close(ours, eager)


def test_sizes_may_vary() -> None:
    def function(x: Tensor) -> Tensor:
        y = torch.cat([fake(torch.sin(x), 0.02, 100), fake(torch.cos(x), 0.03, 120)], 1)
        return fake(y, 0.02, 100)

    compiled = torch.compile(function, backend="effc", dynamic=True)
    for shape in ((2, 6, 9), (1, 3, 5), (4, 1, 7)):
        x = torch.randn(shape)
        with torch.no_grad():
            close(compiled(x), function(x), 0.02)
