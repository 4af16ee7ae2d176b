"""bfloat16 and float16: models in them, under autocast, and where a rounding inside a kernel may be left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from exactness import assert_exact
from torch import Tensor, nn

from effc.bench.systems.system import cast
from effc.compiler.capture.recording import record
from effc.compiler.ir.spec import Instr, KernelSpec

Compiler = Callable[..., Callable[..., Any]]


def kernels(function: Callable[..., Any], *inputs: Tensor) -> list[KernelSpec]:
    """The kernels of the one region that ``function`` compiles to."""
    with torch.no_grad(), record() as recording:
        torch.compile(function, backend="effc")(*inputs)
    ((program, _),) = recording.programs
    assert not recording.graphs[0].fallbacks
    return list(program.kernels)


def ops(specs: list[KernelSpec], name: str) -> list[Instr]:
    return [i for s in specs for i in s.body if i.op == name]


@pytest.mark.parametrize("name", ["mobilenet_v2", "convnext_tiny", "bert_base", "llama_decode", "unet3d"])
def test_models_in_bfloat16(name: str) -> None:
    """One region, so no operation (depthwise convolutions among them) is left to ATen between two of them."""
    case = zoo.build(name, small=True)
    module, inputs = cast(case.module, case.inputs(5, 0), torch.bfloat16)
    with torch.no_grad(), record() as recording:
        assert_exact(module, inputs, torch.compile(module, backend="effc"))
    assert [len(g.regions) for g in recording.graphs] == [1]


@pytest.mark.parametrize("name", ["resnet18", "vit_base"])
def test_models_under_autocast(name: str) -> None:
    case = zoo.build(name, small=True)

    def model(*inputs: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return case.module(*inputs)

    inputs = case.inputs(5, 0)
    with torch.no_grad():
        expected = case.module.double()(*(x.double() if x.is_floating_point() else x for x in inputs))
        case.module.float()
        eager, ours = model(*inputs), torch.compile(model, backend="effc")(*inputs)
    assert ours.dtype == eager.dtype

    def error(y: Tensor) -> float:
        return float((y.double() - expected).norm() / expected.norm())

    assert error(ours) <= 2 * error(eager)


@pytest.mark.parametrize("channels", [1, 15, 16, 33])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_depthwise_convolution(channels: int, stride: int, dtype: torch.dtype, compiled: Compiler) -> None:
    model = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels).to(dtype).eval()
    with torch.no_grad():
        assert_exact(model, (torch.randn(2, channels, 9, 11, dtype=dtype),), compiled(model))


# -- roundings ----------------------------------------------------------------------------------------------------------
def test_a_chain_rounds_once() -> None:
    """Bias, residual, scale: each rounds in eager; the kernel rounds what it stores."""

    def chain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.relu(x + F.linear(x, w, b) * 0.5)

    x, w, b = torch.randn(8, 32).bfloat16(), torch.randn(32, 32).bfloat16(), torch.randn(32).bfloat16()
    assert len(ops(kernels(chain, x, w, b), "arith.truncf")) == 1
    assert_exact(chain, (x, w, b), torch.compile(chain, backend="effc"))


def test_a_value_on_its_way_to_a_normalisation_is_stored_in_two_bytes() -> None:
    norm = nn.LayerNorm(32).bfloat16()

    def block(x: Tensor, w: Tensor) -> Tensor:
        y: Tensor = norm(x + F.linear(x, w))
        return y

    specs = kernels(block, torch.randn(8, 32).bfloat16(), torch.randn(32, 32).bfloat16())
    assert {o.dtype for s in specs for o in s.operands} == {"bf16"}


def test_a_rounding_that_the_model_asks_for_stays(compiled: Compiler) -> None:
    """A float32 number as the sum of three bfloat16: without the roundings two of them would be 0."""

    def split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        high = x.to(torch.bfloat16)
        rest = x - high.float()
        middle = rest.to(torch.bfloat16)
        return high, middle, (rest - middle.float()).to(torch.bfloat16)

    x = torch.randn(1000)
    parts = compiled(split)(x)
    assert all(torch.equal(a, b) for a, b in zip(parts, split(x), strict=True))
    assert torch.equal(sum((p.float() for p in parts), torch.zeros(())), x)


@pytest.mark.parametrize(
    "sees",
    [
        lambda y: y > 0.50390625,
        lambda y: torch.where(y.abs() > 1, y, 0),
        lambda y: y.argmax(-1),
        lambda y: y.floor(),
        lambda y: (y * 16).to(torch.int32),
        lambda y: y == y.amax(-1, keepdim=True),
        lambda y: y.float(),
    ],
)
def test_what_sees_a_rounding_gets_the_rounded_value(sees: Callable[[Tensor], Tensor], compiled: Compiler) -> None:
    def function(x: Tensor, z: Tensor) -> Tensor:
        return sees(x + z)

    x, z = torch.randn(64, 256).bfloat16(), torch.randn(64, 256).bfloat16() / 64
    assert torch.equal(compiled(function)(x, z), function(x, z))


@pytest.mark.parametrize("limit", [F.relu, F.relu6, F.leaky_relu, lambda y: y.clamp(-0.5, 0.75), F.hardswish])
def test_limits_see_values_before_the_rounding(limit: Callable[[Tensor], Tensor]) -> None:
    def function(x: Tensor, z: Tensor) -> Tensor:
        return limit(x + z)

    x, z = torch.randn(64, 256).bfloat16(), torch.randn(64, 256).bfloat16() / 64
    x[0, :4] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    assert len(ops(kernels(function, x, z), "arith.truncf")) == 1
    assert_exact(function, (x, z), torch.compile(function, backend="effc"))


@pytest.mark.parametrize("dim", [0, 1])
def test_all_readers_of_a_value_see_one_rounding(dim: int, compiled: Compiler) -> None:
    """Else the largest element, less itself, is not 0."""

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        z = x * 3 + x
        return y - y.amax(dim, keepdim=True), z - z.amax(dim, keepdim=True)

    for result in compiled(function)(torch.randn(33, 65).bfloat16()):
        assert result.amax(dim).eq(0).all()


def test_float16_overflows_where_eager_does(compiled: Compiler) -> None:
    """Its range is smaller than float32's, so each operation rounds."""

    def function(x: Tensor) -> Tensor:
        return (x * x) / x

    x = torch.tensor([1.0, 300.0, -300.0, 65504.0], dtype=torch.float16)
    torch.testing.assert_close(compiled(function)(x), function(x), rtol=0, atol=0)
