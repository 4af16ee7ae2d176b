"""Kernels for convolutions with sparse weights equal float64's, whatever the window, its stride and dilation, and the pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import pytest
import torch
from contraction_cases import Case, packed
from kernels import HOST, Kernel
from sparse_cases import pruned, sparsity, with_sparsity
from test_contraction_conv import conv_case
from torch import Tensor

from effc.compiler.codegen.cpu.schedules import Packing, alternatives, packing
from effc.compiler.codegen.cpu.sparse.band import Band
from effc.compiler.codegen.cpu.sparse.choice import dense_cycles
from effc.compiler.codegen.cpu.sparse.form import Form, find
from effc.compiler.codegen.cpu.sparse.offers import plans
from effc.compiler.codegen.cpu.sparse.plan import Plan
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.sparsity import Sparsity
from effc.runtime.derive import derive

CHANNELS, OUT = 32, 40
#: Which kernels take which blocks.
METHODS = [
    *[("window", pattern) for pattern in ((1, 1), (4, 1), (8, 1), (1, 4), (3, 2))],
    *[("columns", (16, 1)), ("columns", (32, 1)), ("columns", (16, 2))],
    *[("dots", (1, 16)), ("dots", (1, 32))],
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(11)


def channels_innermost(case: Case, window: Sequence[int], channels: int) -> Case:
    """``case`` with a weight ``[out, window…, channels]``."""
    taps = [channels * prod(window[i + 1 :]) for i in range(len(window))]
    return replace(case, rhs=(0, 0, channels * prod(window), *[0] * len(window), *taps, 1))


class Convolution:
    """``relu(conv(x, weight) + bias)`` of two images, channels last, compiled by the ``number``-th plan of ``method``."""

    def __init__(
        self,
        method: str,
        pattern: tuple[int, int],
        spatial: tuple[int, ...],
        window: tuple[int, ...],
        *,
        stride: int = 1,
        dilation: int = 1,
        density: float = 0.3,
        number: int = 0,
        target: Target = HOST,
    ) -> None:
        self.spatial, self.window, self.stride, self.dilation = spatial, window, stride, dilation
        self.weight = pruned(OUT, CHANNELS * prod(window), *pattern, density)
        case = conv_case(2, CHANNELS, OUT, spatial, window, stride=stride, dilation=dilation)
        spec = channels_innermost(case, window, CHANNELS).spec()
        spec = with_sparsity(spec, sparsity(self.weight, *pattern))
        form = find(packed(spec, 1), target)
        assert not isinstance(form, str), form
        found = [p for p in plans(form, target) if p.method == method]
        self.plan: Plan = found[min(number, len(found) - 1)]
        made = packing(spec, [1], target, {packed(spec, 1).key(): self.plan.schedule})
        assert isinstance(made, Packing)
        self.packing, self.kernel = made, Kernel(made.spec, target)

    def expected(self, x: Tensor, bias: Tensor) -> Tensor:
        """In float64, ``[n, out, …]``; of absolute values where ``x`` and the weight are made so."""
        weight = self.weight.double().view(OUT, *self.window, CHANNELS).movedim(-1, 1)
        convolve = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[len(self.window)]
        result: Tensor = convolve(x.double(), weight, bias.double(), self.stride, 0, self.dilation)
        return result

    def check(self, threads: int = 1) -> None:
        x, bias = torch.randn(2, CHANNELS, *self.spatial), torch.randn(OUT)
        expected = self.expected(x, bias).relu().movedim(1, -1)
        memory = torch.full((expected.numel() + 64,), float("nan"))
        scratch = [
            torch.full((o.size.constant or 0,), float("nan")) for o in self.kernel.spec.operands if o.role == "scratch"
        ]
        weight = derive(self.packing.function, self.weight, dict(self.packing.attributes))
        given = x.movedim(1, -1).contiguous()
        assert self.kernel([given, weight, bias, memory, *scratch], [], threads) == 0
        assert memory[expected.numel() :].isnan().all(), "nothing behind the result is written"
        got = memory[: expected.numel()].view(expected.shape)
        bound = 8 * 2.0**-23 * (CHANNELS * prod(self.window)) ** 0.5 * 4
        assert float((got - expected).abs().max()) <= bound, self.plan


@pytest.mark.parametrize(("method", "pattern"), METHODS)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2), (2, 2)])
def test_strides_and_dilations(stride: int, dilation: int, method: str, pattern: tuple[int, int]) -> None:
    Convolution(method, pattern, (14, 19), (3, 3), stride=stride, dilation=dilation).check(threads=2)


@pytest.mark.parametrize("spatial", [(4, 5), (3, 40), (33, 4), (18, 18), (9, 131)])
@pytest.mark.parametrize(
    ("method", "pattern"), [("window", (1, 1)), ("window", (4, 1)), ("columns", (16, 1)), ("dots", (1, 16))]
)
def test_sizes(method: str, pattern: tuple[int, int], spatial: tuple[int, int]) -> None:
    for number in (0, 3):
        Convolution(method, pattern, spatial, (3, 3), number=number).check(threads=3)


@pytest.mark.parametrize("window", [(1, 3), (3, 1), (2, 5), (5, 5)])
def test_windows(window: tuple[int, int]) -> None:
    for method, pattern in (("columns", (16, 1)), ("dots", (1, 16))):
        Convolution(method, pattern, (12, 15), window).check()
    if 1 not in window:
        Convolution("window", (1, 1), (12, 15), window).check()


@pytest.mark.parametrize(("method", "pattern"), [("columns", (16, 1)), ("dots", (1, 16))])
def test_one_and_three_dimensions(method: str, pattern: tuple[int, int]) -> None:
    Convolution(method, pattern, (50,), (5,), stride=2).check(threads=2)
    Convolution(method, pattern, (6, 7, 9), (3, 2, 3)).check(threads=2)


@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
@pytest.mark.parametrize(("method", "pattern"), [("window", (1, 1)), ("columns", (16, 1)), ("dots", (1, 16))])
def test_shares_of_zeros(method: str, pattern: tuple[int, int], density: float) -> None:
    Convolution(method, pattern, (10, 12), (3, 3), density=density).check()


@pytest.mark.parametrize(
    ("method", "pattern"), [("window", (1, 1)), ("window", (4, 1)), ("columns", (16, 1)), ("dots", (1, 16))]
)
def test_vectors_of_256_bits(method: str, pattern: tuple[int, int]) -> None:
    Convolution(method, pattern, (10, 12), (3, 3), stride=2, target=Target.named("avx2")).check(threads=2)


def test_an_image_that_fills_several_bands() -> None:
    """The last of them has fewer lines."""
    made = Convolution("window", (4, 1), (48, 150), (3, 3))
    assert made.plan.bands.count > 1
    assert made.plan.bands.height.outputs % made.plan.bands.lines
    made.check(threads=2)


# -- what they serve, and when they are chosen ----------------------------------------------------------------------
def form_of(case: Case, known: Sparsity) -> Form | str:
    return find(packed(with_sparsity(case.spec(), known), 1), HOST)


def test_a_weight_whose_channels_are_not_innermost() -> None:
    """Single elements and blocks of output channels lie anywhere; blocks along channels do not."""
    case = conv_case(1, 32, 64, (9, 9), (3, 3))
    assert isinstance(form_of(case, Sparsity(16, 1, 10)), Form)
    assert form_of(case, Sparsity(1, 16, 10)) == "blocks do not lie along the channels, or do not divide them"


def test_sizes_known_at_run_time() -> None:
    assert isinstance(form_of(conv_case("n", 32, 64, (9, 9), (3, 3)), Sparsity(16, 1, 10)), Form)


def test_bands_are_of_two_dimensions() -> None:
    for spatial, window, are in (((9, 9), (3, 3), True), ((9, 9, 9), (3, 3, 3), False), ((40,), (5,), False)):
        form = form_of(conv_case(1, 32, 64, spatial, window), Sparsity(1, 1, 10))
        assert isinstance(form, Form)
        assert (Band.of(form) is not None) == are


def test_chosen_against_the_dense_kernel_that_would_run() -> None:
    """At stride 1 that is Winograd's, with fewer products: more zeros are asked for."""
    least = {}
    for stride in (1, 2):
        case = conv_case(1, 64, 64, (30, 30), (3, 3), stride=stride)
        chosen = []
        for percent in range(5, 100, 5):
            spec = with_sparsity(case.spec(), Sparsity(16, 1, 64 * 576 // 16 * percent // 100))
            found = packing(spec, [1], HOST)
            assert isinstance(found, Packing)
            chosen.append(found.function == "sparse_panels")
            assert found.spec == alternatives(found.spec, HOST)[0]
        assert chosen == sorted(chosen, reverse=True), "the fewer are stored, the sooner"
        least[stride] = sum(chosen)
    assert 0 < least[1] < least[2] < 19
    dense = packed(with_sparsity(conv_case(1, 64, 64, (30, 30), (3, 3)).spec(), Sparsity(1, 1, 64 * 576)), 1)
    form = find(dense, HOST)
    assert isinstance(form, Form)
    assert dense_cycles(dense, form, HOST) < 0.8 * 28 * 28 * 64 * 576 / 32, "fewer than the direct method's products"
