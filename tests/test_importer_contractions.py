"""Matrix products, convolutions, pooling and attention against eager through the evaluator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import importer_harness
import pytest
import torch
import torch.nn.functional as F
from importer_harness import Capture, boxed_compiler, compile_and_run
from torch import Tensor
from torch._functorch.aot_autograd import aot_function

from effc.compiler.capture.decompositions import decompositions

agrees = partial(importer_harness.agrees, tolerance=2e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_products(dynamic: bool) -> None:
    a, b = torch.randn(5, 7), torch.randn(7, 3)
    agrees(torch.mm, a, b, dynamic=dynamic)
    agrees(lambda a, b: a.t().contiguous().t() @ b, a, b, dynamic=dynamic)
    agrees(torch.bmm, torch.randn(2, 5, 7), torch.randn(2, 7, 3), dynamic=dynamic)
    agrees(torch.mv, a, torch.randn(7), dynamic=dynamic)
    agrees(torch.dot, torch.randn(7), torch.randn(7), dynamic=dynamic)
    agrees(lambda b, x, y: torch.addmm(b, x, y, beta=0.5, alpha=2), torch.randn(3), a, b, dynamic=dynamic)
    agrees(torch.baddbmm, torch.randn(2, 5, 3), torch.randn(2, 5, 7), torch.randn(2, 7, 3), dynamic=dynamic)
    agrees(torch.matmul, torch.randn(4, 1, 5, 7), torch.randn(2, 7, 3), dynamic=dynamic)
    agrees(
        lambda x, y: torch.einsum("bhid,bhjd->bhij", x, y),
        torch.randn(2, 3, 4, 5),
        torch.randn(2, 3, 6, 5),
        dynamic=dynamic,
    )


def test_products_of_one_row_stay_contractions() -> None:
    capture = agrees(F.linear, torch.randn(1, 8), torch.randn(5, 8), torch.randn(5))
    assert "linalg.contract" in capture.regions[0].text


def test_products_over_nothing_and_of_integers() -> None:
    agrees(torch.mm, torch.zeros(3, 0), torch.zeros(0, 4))
    agrees(torch.mm, torch.zeros(0, 3), torch.zeros(3, 4))
    agrees(torch.mm, torch.arange(6).reshape(2, 3), torch.arange(12).reshape(3, 4), tolerance=0)
    agrees(
        lambda b, x, y: torch.addmm(b, x, y, beta=0),
        torch.full((2, 4), float("nan")),
        torch.ones(2, 3),
        torch.ones(3, 4),
    )


def test_16_bit_products_accumulate_in_float32() -> None:
    a, b, c = (torch.randn(s).bfloat16() for s in ((9, 300), (300, 11), (11,)))
    found, capture = compile_and_run(lambda a, b, c: torch.addmm(c, a, b), [a, b, c])
    exact = torch.addmm(c.double(), a.double(), b.double())
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-3)
    assert "-> tensor<9x11xf32>" in capture.regions[0].text


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 3, 9, 8), (4, 3, 3, 3), {}),
    "strided": ((2, 3, 9, 8), (4, 3, 3, 3), {"stride": 2, "padding": 1}),
    "dilated": ((1, 3, 11, 9), (4, 3, 3, 2), {"dilation": (2, 3), "padding": (2, 1)}),
    "grouped": ((2, 6, 7, 7), (4, 3, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((1, 5, 6, 6), (5, 1, 3, 3), {"groups": 5, "stride": 2}),
    "same": ((1, 2, 7, 7), (3, 2, 4, 4), {"padding": "same"}),
    "pointwise": ((2, 3, 5, 5), (4, 3, 1, 1), {}),
    "one_dim": ((2, 3, 12), (4, 3, 5), {"stride": 3, "padding": 2}),
    "three_dim": ((1, 2, 4, 5, 6), (3, 2, 2, 3, 3), {"padding": 1}),
    "unbatched": ((3, 9, 8), (4, 3, 3, 3), {}),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, bias: bool) -> None:
    x, w, options = CONVOLUTIONS[name]
    function = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[len(w)]
    args = [torch.randn(x), torch.randn(w), *([torch.randn(w[0])] if bias else [])]
    agrees(lambda *a: function(*a, **options), *args)


@pytest.mark.parametrize("name", ["plain", "strided", "grouped", "one_dim"])
def test_convolutions_with_symbolic_batch_and_image(name: str) -> None:
    x, w, options = CONVOLUTIONS[name]
    function = {3: F.conv1d, 4: F.conv2d}[len(w)]
    image, kernel = torch.randn(x), torch.randn(w)
    for d in (0, *range(2, len(x))):
        torch._dynamo.mark_dynamic(image, d)
    agrees(lambda a, k: function(a, k, **options), image, kernel, dynamic=None)


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"stride": 2, "padding": 1, "output_padding": 1}, {"groups": 2}, {"dilation": 2, "padding": 3}],
)
def test_transposed_convolutions(options: dict[str, Any]) -> None:
    agrees(lambda x, w, b: F.conv_transpose2d(x, w, b, **options), torch.randn(2, 4, 5, 6), torch.randn(4, 3, 3, 3),
           torch.randn(3 * options.get("groups", 1)))  # fmt: skip
    agrees(lambda x, w: F.conv_transpose1d(x, w, **options), torch.randn(1, 4, 7), torch.randn(4, 2, 3))


def test_convolution_of_bfloat16() -> None:
    x, w = torch.randn(1, 16, 8, 8).bfloat16(), torch.randn(4, 16, 3, 3).bfloat16()
    found, _ = compile_and_run(F.conv2d, [x, w])
    exact = F.conv2d(x.double(), w.double())
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2e-2)


@pytest.mark.parametrize("name", ["plain", "strided", "dilated", "grouped", "depthwise", "one_dim", "three_dim"])
def test_gradients_of_convolutions(name: str) -> None:
    x, w, options = CONVOLUTIONS[name]
    function: Callable[..., Tensor] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[len(w)]
    values = [torch.randn(x), torch.randn(w), torch.randn(w[0])]

    def loss(*args: Tensor) -> Tensor:
        return function(*args, **options).square().sum()

    reference = [v.clone().requires_grad_() for v in values]
    mine = [v.clone().requires_grad_() for v in values]
    loss(*reference).backward()
    capture = Capture()
    compiler = boxed_compiler(capture)
    aot_function(loss, fw_compiler=compiler, bw_compiler=compiler, decompositions=decompositions())(*mine).backward()
    assert capture.refused == []
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max_dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=(3, 2)),
    "max_positions": lambda x: F.max_pool2d(x, (3, 2), 2, (1, 0), return_indices=True)[1],
    "max_1d": lambda x: F.max_pool1d(x[:, :, 0], 3, 2),
    "average": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average_inside": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average_ceil": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average_divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "adaptive_one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "bilinear": lambda x: F.interpolate(x, size=(5, 13), mode="bilinear", align_corners=False),
    "bilinear_corners": lambda x: F.interpolate(x, size=(5, 13), mode="bilinear", align_corners=True),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling_and_resizing(name: str) -> None:
    agrees(POOLS[name], torch.randn(2, 3, 9, 10))


@pytest.mark.parametrize("name", ["max", "max_positions", "average", "average_inside", "nearest"])
def test_pooling_with_symbolic_sizes(name: str) -> None:
    agrees(POOLS[name], torch.randn(2, 3, 9, 10), dynamic=True)


def test_pooling_propagates_nan() -> None:
    x = torch.randn(1, 1, 4, 4)
    x[0, 0, 1, 1] = float("nan")
    agrees(lambda x: F.max_pool2d(x, 2, 1), x)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool, dynamic: bool) -> None:
    q, k, v = (torch.randn(2, 6, 3, 8) for _ in range(3))
    if dynamic:
        for x in (q, k, v):
            torch._dynamo.mark_dynamic(x, 1)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    capture = agrees(model, q, k, v, dynamic=None)
    assert '"effc.attention"' in capture.regions[0].text


def test_attention_with_masks_and_scale() -> None:
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    agrees(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=0.3), q, k, v, torch.randn(5, 7))
    agrees(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), q, k, v, torch.rand(2, 1, 5, 7) > 0.2)
    agrees(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v)
