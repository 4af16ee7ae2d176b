"""The interpreter of ``tt`` kernels, on kernels small enough to know what they do; and the dialect's own checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch_mlir import ir
from tt_functions import compared, to_bf16, to_tf32
from tt_interpreter import Fault, launch

from effc.compiler.codegen.gpu import dialect as tt
from effc.compiler.codegen.gpu.builder import Builder, kernel_text
from effc.compiler.ir.errors import LoweringError

Values = list[ir.Value]


def kernel(dtypes: list[str], body: Callable[[Builder, Values], None], scalars: int = 0) -> str:
    return kernel_text("k", [(d, 4) for d in dtypes], scalars, body)


def copies(b: Builder, given: Values) -> None:
    at = b.op("arith.addi", b.op("arith.muli", b.program_id(), b.constant(8, "i32")), b.range(8))
    inside = b.compare("arith.cmpi", "slt", at, given[2])
    b.store(b.pointers(given[1], at), b.load(b.pointers(given[0], at), inside), inside)


def test_programs_read_and_write_their_part() -> None:
    x, y = np.arange(13, dtype=np.float32), np.zeros(13, np.float32)
    launch(kernel(["f32", "f32"], copies, 1), 2, [x, y], [13])
    assert np.array_equal(x, y)


def test_a_read_outside_of_a_buffer_is_a_fault() -> None:
    x, y = np.arange(13, dtype=np.float32), np.zeros(16, np.float32)
    with pytest.raises(Fault, match="element 13"):
        launch(kernel(["f32", "f32"], copies, 1), 2, [x, y], [14])


def test_elements_of_another_size_are_a_fault() -> None:
    with pytest.raises(Fault, match="2 bytes"):
        launch(kernel(["f16", "f16"], copies, 1), 1, [np.zeros(8, np.float32), np.zeros(8, np.float16)], [8])


def test_two_programs_that_write_one_element_are_a_fault() -> None:
    def body(b: Builder, given: Values) -> None:
        b.store(given[0], b.op("arith.sitofp", b.program_id(), dtype="f32"), None)

    with pytest.raises(Fault, match="two programs"):
        launch(kernel(["f32"], body), 2, [np.zeros(1, np.float32)])


def test_reading_what_another_program_wrote_is_a_fault() -> None:
    def body(b: Builder, given: Values) -> None:
        at = b.program_id()
        value = b.load(b.pointers(given[0], b.constant(0, "i32")))
        b.store(b.pointers(given[0], at), value, None)

    with pytest.raises(Fault, match="after another program"):
        launch(kernel(["f32"], body), 2, [np.ones(2, np.float32)])


def test_loops_carry_tiles_and_reductions_fold_them() -> None:
    def body(b: Builder, given: Values) -> None:
        def step(at: ir.Value, carried: Sequence[ir.Value]) -> Values:
            index = b.op("arith.addi", at, b.range(4))
            inside = b.compare("arith.cmpi", "slt", index, given[2])
            return [b.op("arith.addf", carried[0], b.load(b.pointers(given[0], index), inside))]

        (tile,) = b.loop(b.constant(0, "i32"), given[2], 4, [b.constant(0, "f32", (4,))], step)
        (total,) = b.reduce([tile], 0, lambda x, y: [b.op("arith.addf", x[0], y[0])])
        b.store(b.pointers(given[1], b.range(1)), total, None)

    x, y = np.random.default_rng(0).normal(size=11).astype(np.float32), np.zeros(1, np.float32)
    launch(kernel(["f32", "f32"], body, 1), 1, [x, y], [11])
    assert y[0] == pytest.approx(x.sum(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_products_sum_in_float32(dtype: str) -> None:
    torch_dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype]

    def body(b: Builder, given: Values) -> None:
        grid = b.op("arith.addi", b.op("arith.muli", b.range(16, 0, 2), b.constant(16, "i32")), b.range(16, 1, 2))
        x, y = (b.load(b.pointers(given[i], grid)) for i in (0, 1))
        product = b.dot(x, y, b.constant(1, "f32", (16, 16)))
        b.store(b.pointers(given[2], grid), product, None)

    x, y, z = torch.randn(16, 16).to(torch_dtype), torch.randn(16, 16).to(torch_dtype), torch.zeros(16, 16)
    arrays = [(t.view(torch.int16) if dtype == "bf16" else t).reshape(-1).numpy() for t in (x, y)]
    arrays = [a.view(np.uint16) if dtype == "bf16" else a for a in arrays]
    launch(kernel([dtype, dtype, "f32"], body), 1, [*arrays, z.reshape(-1).numpy()])
    torch.testing.assert_close(z.double(), x.double() @ y.double() + 1, rtol=1e-5, atol=1e-5)


def test_bf16_rounds_to_nearest_even() -> None:
    x = torch.cat([torch.randn(1000), torch.tensor([float("inf"), -float("inf"), 0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8])])
    assert np.array_equal(to_bf16(x.numpy()), x.bfloat16().float().numpy())
    assert np.isnan(to_bf16(np.float32("nan")))


def test_tf32_keeps_ten_bits() -> None:
    assert to_tf32(np.float32(1 + 2**-10)) == 1 + 2**-10
    assert to_tf32(np.float32(1 + 2**-12)) == 1
    assert np.isinf(to_tf32(np.float32("inf")))


def test_comparisons_of_nan() -> None:
    nan, one = np.float32("nan"), np.float32(1)
    ordered_equal, unordered_unequal, unordered = 1, 13, 14
    assert not compared("arith.cmpf", ordered_equal)(nan, nan)
    assert compared("arith.cmpf", unordered_unequal)(nan, one)
    assert compared("arith.cmpf", unordered)(nan, one)
    assert compared("arith.cmpi", 6)(np.int32(1), np.int32(-1)), "-1 is the largest unsigned number"


def test_a_kernel_reads_back_as_it_was_written() -> None:
    text = kernel(["f32", "f32"], copies, 1)
    context = ir.Context()
    tt.load(context)
    with context, ir.Location.unknown():
        module = tt.parse(text)
        assert tt.verify(module) == []
        assert tt.to_text(module) == text


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("tensor<8xf32>", "tensor<6xf32>", "no power of two"),
        ("-> tensor<8x!tt.ptr<f32>>", "-> tensor<8x!tt.ptr<f16>>", "at a pointer to"),
    ],
)
def test_wrong_types_are_found(before: str, after: str, message: str) -> None:
    text = kernel(["f32", "f32"], copies, 1).replace(before, after)
    context = ir.Context()
    tt.load(context)
    with context, ir.Location.unknown():
        try:
            problems = "; ".join(tt.verify(tt.parse(text)))
        except ir.MLIRError as error:
            problems = str(error)
    assert message in problems or "type" in problems


def test_tiles_that_do_not_broadcast_are_refused_by_name() -> None:
    with pytest.raises(LoweringError, match="does not broadcast"):
        kernel(["f32"], lambda b, _: b.op("arith.addi", b.range(8), b.range(4)))
