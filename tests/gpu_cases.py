"""Kernels of real sizes, by name: what PTX is looked at, and what ``tools/gpu_kernels.py`` lists."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from contraction_cases import Case
from gpu_pairs import PairCase
from kernels import LoopsBuilder
from low_bit_cases import Linear
from test_attention_kernel import attention_spec
from test_contraction_conv import conv_case
from torch.nn.functional import scaled_dot_product_attention

from effc.compiler.codegen.gpu.nibbles import packed_codes
from effc.compiler.ir.expr import const
from effc.compiler.ir.formats import INT4, NF4, Format
from effc.compiler.ir.spec import KernelSpec


@dataclass(frozen=True)
class GpuCase:
    """``small``: the same kernel at a size that the interpreter can run. ``cores``: whether tensor cores must multiply. ``wide``: whether
    they are Hopper's wgmma there.
    """

    name: str
    spec: KernelSpec
    small: KernelSpec
    cores: bool = False
    wide: bool = False


def linear(m: int, n: int, k: int, dtype: str, result: str = "") -> KernelSpec:
    """``relu(x w^T + bias)``; without an epilogue for integers."""
    floats = dtype[0] != "i"
    bias = (0, 1) if floats else None
    return Case((m, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1, 0), dtype, result, bias, floats).spec()


def softmax(rows: int, columns: int) -> KernelSpec:
    k = LoopsBuilder(
        [(rows, "parallel"), (columns, "reduction")],
        [("f32", "read", rows * columns), ("f32", "write", rows * columns)],
    )
    x = k.load(0, f"{columns}*d0 + d1")
    power = k.op("math.exp", k.op("arith.subf", x, k.reduce("max", x)))
    k.store(1, f"{columns}*d0 + d1", k.op("arith.divf", power, k.reduce("add", power)))
    return k.spec()


def rms_norm(rows: int, columns: int) -> KernelSpec:
    size = rows * columns
    k = LoopsBuilder(
        [(rows, "parallel"), (columns, "reduction")],
        [("bf16", "read", size), ("bf16", "read", columns), ("bf16", "write", size)],
    )
    x = k.op("arith.extf", k.load(0, f"{columns}*d0 + d1"))
    mean = k.op("arith.divf", k.reduce("add", k.op("arith.mulf", x, x)), k.constant(float(columns)))
    scaled = k.op("arith.mulf", x, k.op("math.rsqrt", k.op("arith.addf", mean, k.constant(1e-6))))
    weighted = k.op("arith.mulf", scaled, k.op("arith.extf", k.load(1, "d1")))
    k.store(2, f"{columns}*d0 + d1", k.op("arith.truncf", weighted, dtype="bf16"))
    return k.spec()


def gelu(size: int) -> KernelSpec:
    k = LoopsBuilder([(size, "parallel")], [("f16", "read", size), ("f16", "write", size)])
    x = k.op("arith.extf", k.load(0, "d0"))
    error = k.op("math.erf", k.op("arith.mulf", x, k.constant(0.7071067811865476)))
    half = k.op("arith.mulf", k.op("arith.mulf", x, k.constant(0.5)), k.op("arith.addf", error, k.constant(1.0)))
    k.store(1, "d0", k.op("arith.truncf", half, dtype="f16"))
    return k.spec()


def tanh_of_one() -> KernelSpec:
    k = LoopsBuilder([], [("bf16", "read", 1), ("bf16", "write", 1)])
    k.store(1, "0", k.op("math.tanh", k.load(0, "0"), dtype="bf16"))
    return k.spec()


def transpose(rows: int, columns: int) -> KernelSpec:
    size = rows * columns
    k = LoopsBuilder([(rows, "parallel"), (columns, "parallel")], [("f32", "read", size), ("f32", "write", size)])
    k.store(1, f"{columns}*d0 + d1", k.load(0, f"d0 + {rows}*d1"))
    return k.spec()


def column_sums(rows: int, columns: int) -> KernelSpec:
    k = LoopsBuilder(
        [(columns, "parallel"), (rows, "reduction")], [("f32", "read", rows * columns), ("f32", "write", columns)]
    )
    k.store(1, "d0", k.reduce("add", k.load(0, f"{columns}*d1 + d0")))
    return k.spec()


def codes(m: int, n: int, k: int) -> KernelSpec:
    return Linear(m, n, k, x="bf16", scale="bf16").spec()


def groups(m: int, n: int, k: int, group: int, format_: Format = INT4) -> KernelSpec:
    """Codes two a byte."""
    spec = Linear(m, n, k, group, format_, x="bf16", zero="" if format_.codebook else "f32").spec()
    operands = (replace(o, size=const(n * k)) if i == 1 else o for i, o in enumerate(spec.operands))
    return packed_codes(replace(spec, operands=tuple(operands)), [1])[0]


def bytes_of_both_signs(m: int, n: int, k: int) -> KernelSpec:
    """Unsigned rows times signed weights."""
    return Case((m, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1, 0), "i8", "i32", unsigned=0).spec()


def conv(channels: int, size: int, groups: int = 1) -> KernelSpec:
    return conv_case(2, channels, channels, (size, size), (3, 3), groups=groups, dtype="f16", result="f32").spec()


def attention(
    batch: int, heads: int, length: int, channels: int, *, dtype: str = "f16", causal: bool = False, group: int = 1
) -> KernelSpec:
    return attention_spec((batch, heads, length, length, channels, channels), dtype=dtype, causal=causal, group=group)


def decode(batch: int, heads: int, length: int, channels: int) -> KernelSpec:
    return attention_spec((batch, heads, 1, length, channels, channels), dtype="f16", group=4)


def factors(m: int, k: int, rank: int, n: int) -> KernelSpec:
    return PairCase(m, k, rank, n, "f16").spec()


def mlp(m: int, columns: int, hidden: int) -> KernelSpec:
    """With its norm."""
    return PairCase(m, columns, hidden, columns, "f16", "math.erf", norm=True).spec()


def attended(spec: KernelSpec, tensors: list[torch.Tensor]) -> torch.Tensor:
    """What an attention on dense tensors gives, flat."""
    b, h, q, k, d, e = (dim.size.constant or 1 for dim in spec.dims)
    shapes = ((b, h, q, d), (b, h // spec.get("group"), k, d), (b, h // spec.get("group"), k, e))
    query, key, value = (t.double().view(s) for t, s in zip(tensors, shapes, strict=False))
    made = scaled_dot_product_attention(
        query, key, value, is_causal=bool(spec.get("causal")), scale=spec.get("scale"), enable_gqa=True
    )
    return made.flatten()


CASES = [
    GpuCase(
        "linear f16 2048x2048x2048", linear(2048, 2048, 2048, "f16"), linear(70, 90, 130, "f16", "f32"), True, True
    ),
    GpuCase("linear bf16 512x3072x768", linear(512, 3072, 768, "bf16"), linear(70, 90, 130, "bf16", "f32"), True, True),
    GpuCase("linear f16 1000x1001x999", linear(1000, 1001, 999, "f16"), linear(33, 31, 99, "f16", "f32"), True, True),
    GpuCase("linear f16 16x4096x4096", linear(16, 4096, 4096, "f16"), linear(16, 64, 2100, "f16", "f32"), True),
    GpuCase("linear f16 1x4096x4096", linear(1, 4096, 4096, "f16"), linear(1, 64, 2100, "f16", "f32")),
    GpuCase("linear f32 512x512x512", linear(512, 512, 512, "f32"), linear(70, 90, 130, "f32")),
    GpuCase("linear i8 512x512x512", linear(512, 512, 512, "i8", "i32"), linear(70, 90, 130, "i8", "i32"), True, True),
    GpuCase("int8 weights bf16 256x1024x1024", codes(256, 1024, 1024), codes(33, 40, 96), True, True),
    GpuCase("int4 weights bf16 32x1024x1024", groups(32, 1024, 1024, 128), groups(17, 40, 128, 64), True),
    GpuCase("int4 weights bf16 1x4096x4096", groups(1, 4096, 4096, 128), groups(1, 40, 256, 64)),
    GpuCase("NF4 weights bf16 32x1024x1024", groups(32, 1024, 1024, 64, NF4), groups(17, 40, 128, 64, NF4), True),
    GpuCase("NF4 weights bf16 1x4096x4096", groups(1, 4096, 4096, 64, NF4), groups(1, 40, 256, 64, NF4)),
    GpuCase(
        "linear u8 times i8 512x512x512",
        bytes_of_both_signs(512, 512, 512),
        bytes_of_both_signs(70, 90, 130),
        True,
        True,
    ),
    GpuCase("conv 3x3 f16 64 to 64", conv(64, 30), conv(16, 9), True, True),
    GpuCase("conv 3x3 f16 depthwise", conv(64, 30, 64), conv(8, 9, 8)),
    GpuCase(
        "attention f16 64, causal",
        attention(2, 8, 512, 64, causal=True),
        attention(1, 2, 70, 16, causal=True),
        True,
        True,
    ),
    GpuCase(
        "attention f16 128, 4 heads a key",
        attention(1, 8, 256, 128, group=4),
        attention(1, 4, 70, 32, group=4),
        True,
        True,
    ),
    GpuCase("attention f16 128, decode", decode(4, 32, 2048, 128), decode(1, 8, 600, 32), True),
    GpuCase("attention f32 64", attention(1, 4, 64, 64, dtype="f32"), attention(1, 2, 40, 16, dtype="f32")),
    GpuCase("softmax f32 1024x1000", softmax(1024, 1000), softmax(5, 1000)),
    GpuCase("softmax f32 64x50000", softmax(64, 50_000), softmax(2, 9000)),
    GpuCase("rms norm bf16 1024x4096", rms_norm(1024, 4096), rms_norm(3, 4096)),
    GpuCase("gelu f16 1048576", gelu(1 << 20), gelu(3000)),
    GpuCase("tanh bf16 of one number", tanh_of_one(), tanh_of_one()),
    GpuCase("transpose f32 1000x1000", transpose(1000, 1000), transpose(50, 70)),
    GpuCase("sums of columns f32 1000x1000", column_sums(1000, 1000), column_sums(200, 50)),
    GpuCase("factors f16 8192x1024x64x1024", factors(8192, 1024, 64, 1024), factors(70, 90, 24, 130), True, True),
    GpuCase("mlp f16 50176x96x384x96", mlp(50176, 96, 384), mlp(70, 24, 90), True, True),
    GpuCase("sum of everything f32 1048576", column_sums(1 << 20, 1), column_sums(1 << 15, 1)),
]
