"""Beyond 2**31: kernels of a few points that lie so far apart compute what they do where all is near; so do those that divide such numbers
on their way to an operand or a size that is small.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contraction_cases import Case
from gpu_interpreted import SM80, TMA, Kernel, agrees, memory_of, operands_of, sized
from kernels import LoopsBuilder
from test_attention_kernel import attention_spec
from tt_interpreter import Memory, Region, run

from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.ir.spec import Instr, KernelSpec

#: Elements from one point of dim 0 to the next: 32 bits do not hold it, and 16 bytes divide it.
_FAR = (1 << 31) + 64
_POINTS = 3


def softmax() -> KernelSpec:
    k = LoopsBuilder([(_POINTS, "parallel"), (100, "reduction")], [("f32", "read", 300), ("f32", "write", 300)])
    x = k.load(0, "100*d0 + d1")
    power = k.op("math.exp", k.op("arith.subf", x, k.reduce("max", x)))
    k.store(1, "100*d0 + d1", k.op("arith.divf", power, k.reduce("add", power)))
    return k.spec().with_schedule(rows=1, columns=128, warps=1)


def doubled() -> KernelSpec:
    k = LoopsBuilder([(_POINTS, "parallel"), (100, "parallel")], [("f32", "read", 300), ("f32", "write", 300)])
    x = k.load(0, "100*d0 + d1")
    k.store(1, "100*d0 + d1", k.op("arith.addf", x, x))
    return k.spec().with_schedule(rows=1, columns=128, warps=1)


def product() -> KernelSpec:
    return Case((_POINTS, 18, 24, 40), 1, (720, 40, 0, 1), (960, 0, 40, 1), (432, 24, 1, 0), "f16", "f32").spec()


def attention() -> KernelSpec:
    return attention_spec((_POINTS, 2, 17, 33, 16, 16), dtype="f16")


def apart(spec: KernelSpec) -> KernelSpec:
    """``spec`` whose operands lie `_FAR` elements further for each point of dim 0."""

    def moved(e: Any) -> Any:
        step = e.coefficient("d0") if isinstance(e, Expr) else None
        return e + var("d0") * (const(_FAR) - step) if step is not None else e

    def body(instr: Instr) -> Instr:
        return replace(instr, attributes=tuple((k, moved(v)) for k, v in instr.attributes))

    operands = tuple(replace(o, size=const(_POINTS * _FAR)) for o in spec.operands)
    attributes = tuple((k, moved(v)) for k, v in spec.attributes)
    return replace(spec, operands=operands, body=tuple(map(body, spec.body)), attributes=attributes)


def launch(kernel: Kernel, tensors: list[torch.Tensor]) -> None:
    """On ``tensors``, of each of which equal parts belong to the points of dim 0."""
    regions, bases = list[Region](), [(i + 1) << 50 for i in range(len(tensors) + 2)]
    for base, tensor in zip(bases, tensors, strict=False):
        part = tensor.numel() // _POINTS
        for i in range(_POINTS):
            memory = memory_of(tensor)[i * part : (i + 1) * part].view(np.uint8)
            regions.append(Region(base + i * _FAR * tensor.element_size(), memory))
    own = [np.zeros(1 << 16, np.uint8) for _ in range(2)]
    regions += [Region(base, memory) for base, memory in zip(bases[len(tensors) :], own, strict=True)]
    (launched,) = kernel.emitted.launches
    run(launched.text, launched.grid.evaluate({}), Memory(regions), bases)


@pytest.mark.parametrize(
    ("spec", "target"),
    [(softmax(), SM80), (doubled(), SM80), (product(), SM80), (product(), TMA), (attention(), SM80)],
    ids=["reduction", "pointwise", "product", "product by descriptors", "attention"],
)
def test_kernels_of_tensors_beyond_32_bits(spec: KernelSpec, target: GpuTarget) -> None:
    near = operands_of(spec)
    far = [t.clone() for t in near]
    assert Kernel(sized(spec), target)(near) == 0
    launch(Kernel(apart(spec), target), far)
    for ours, same in zip(far, near, strict=True):
        torch.testing.assert_close(ours, same, rtol=0, atol=0)


@pytest.mark.parametrize("size", ["9", "s0"])
def test_what_an_address_divides_may_be_beyond_32_bits(size: str) -> None:
    """As where a vector is expanded to more elements than 2**31, and the result reshaped."""
    inner = f"{1 << 29}*d0 + d1"
    k = LoopsBuilder([(size, "parallel"), (100, "parallel")], [("f32", "read", 4), ("f32", "write", f"100*{size}")])
    x = k.load(0, f"({inner}) // {3 << 29}")
    y = k.load(0, f"(({inner}) % {(1 << 32) + 1}) // {1 << 31}")
    k.store(1, "100*d0 + d1", k.op("arith.addf", x, y))
    symbols = [9] if size == "s0" else []
    agrees(k.spec(symbols=("s0",) if symbols else ()), [torch.randn(4), torch.full((900,), float("nan"))], symbols)


def test_what_a_size_divides_may_be_beyond_32_bits() -> None:
    """The product of two sizes known at a call only."""
    rows = f"(s0*s1 + 5) // {1 << 30} + s2"
    k = LoopsBuilder([(rows, "parallel"), (7, "reduction")], [("f32", "read", f"7*({rows})"), ("f32", "write", rows)])
    k.store(1, "d0", k.reduce("add", k.load(0, "7*d0 + d1")))
    agrees(k.spec(symbols=("s0", "s1", "s2")), [torch.randn(42), torch.full((6,), float("nan"))], [1 << 16, 1 << 16, 2])


def test_codes_two_in_a_byte_found_by_what_is_beyond_32_bits() -> None:
    address = f"({1 << 29}*d0 + d1) // {3 << 29}"
    k = LoopsBuilder([(9, "parallel"), (5, "parallel")], [("i8", "packed", 2), ("f32", "write", 45)])
    code = k.op("decode", k.load(0, address), bits=4, codebook=(), signed=0)
    k.store(1, "5*d0 + d1", code)
    codes, out = torch.tensor([0x21, 0x43], dtype=torch.int8), torch.full((45,), float("nan"))
    assert Kernel(k.spec())([codes, out]) == 0
    expected = torch.tensor([1.0 + (i << 29) // (3 << 29) for i in range(9)])
    assert torch.equal(out.view(9, 5), expected[:, None].expand(9, 5))
