"""Models whose weights hold zeros, from Dynamo to results, where the graph IR says which of them kernels may leave out."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from sparse_cases import pruned, sparsity
from torch import Tensor, nn

from effc.compiler.build import Built
from effc.compiler.capture import backend
from effc.compiler.ir.errors import InputError
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import KernelSpec

Patterns = dict[str, tuple[int, int]]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(5)


class Regions:
    """A backend whose regions know ``patterns`` of the zeros in parameters of ``model``; ``kernels``: what was compiled."""

    def __init__(self, model: nn.Module, patterns: Patterns) -> None:
        self.parameters, self.patterns = dict(model.named_parameters()), patterns
        self.kernels: list[KernelSpec] = []

    def builder(self, options: Options) -> Callable[[str], Built]:
        build = backend.builder(options)

        def sparse(text: str) -> Built:
            built = build(re.sub(r'effc\.param = "([^"]+)"', self._known, text))
            self.kernels += built.executable.program.kernels
            return built

        return sparse

    def _known(self, found: re.Match[str]) -> str:
        if found[1] not in self.patterns:
            return found[0]
        known = sparsity(self.parameters[found[1]].detach().flatten(1), *self.patterns[found[1]])
        return f"{found[0]}, effc.sparsity = {known.encoding}, effc.stored = {known.stored} : i64"

    def compile(self, model: nn.Module, **arguments: Any) -> Callable[..., Any]:
        compiler = partial(backend.compile_with, options=Options(), builder=self.builder)
        return torch.compile(model, backend=compiler, **arguments)

    @property
    def methods(self) -> list[str]:
        found = [str(k.schedule.get("sparse", "")) for k in self.kernels if k.template == "contraction"]
        return [method for method in found if method]


class Block(nn.Module):
    """An inverted residual, as in MobileNetV2, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(48, 192, 1, bias=False), nn.BatchNorm2d(192)
        self.depthwise = nn.Conv2d(192, 192, 3, padding=1, groups=192)
        self.project, self.head = nn.Conv2d(192, 48, 1), nn.Linear(48, 100)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self.norm(self.expand(x)))
        y = x + self.project(nn.functional.relu6(self.depthwise(y)))
        result: Tensor = self.head(y.flatten(2).transpose(1, 2))
        return result


def prune(model: nn.Module, patterns: Patterns, density: float) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, pattern in patterns.items():
            weight = parameters[name]
            n, k = weight.flatten(1).shape
            weight.copy_((pruned(n, k, *pattern, density) / k**0.5).view_as(weight))


def agree(found: Tensor, model: nn.Module, *inputs: Tensor) -> None:
    """``found`` is within twice eager's error, or 4 eps."""
    eager = model(*inputs)
    true = model.double()(*(x.double() for x in inputs))
    model.float()
    error, bound = ((y - true).norm() / true.norm() for y in (found, eager))
    assert error <= max(2 * bound.item(), 4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("pattern", [(1, 1), (4, 1), (16, 1), (1, 16)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_and_linears_in_a_model(pattern: tuple[int, int], memory_format: torch.memory_format) -> None:
    """With what stands around them in their kernels: norm, activations, the residual, bias."""
    model, patterns = Block().eval(), dict.fromkeys(("expand.weight", "project.weight", "head.weight"), pattern)
    prune(model, patterns, 0.05)
    regions = Regions(model, patterns)
    x = torch.randn(2, 48, 14, 15).to(memory_format=memory_format)
    with torch.no_grad():
        compiled = regions.compile(model)
        agree(compiled(x), model, x)
    assert len(regions.methods) == 3
    assert not any(k.template == "loops" for k in regions.kernels), "nothing around them needs a kernel of its own"


def test_nothing_is_left_out_unasked() -> None:
    model = Block().eval()
    prune(model, {"expand.weight": (1, 1), "project.weight": (1, 1)}, 0.1)
    regions = Regions(model, {})
    with torch.no_grad():
        regions.compile(model)(torch.randn(2, 48, 14, 14))
    assert regions.methods == []


def test_a_number_of_rows_that_changes() -> None:
    model = nn.Sequential(nn.Linear(96, 128), nn.GELU(), nn.Linear(128, 64)).eval()
    patterns = {"0.weight": (1, 1), "2.weight": (16, 1)}
    prune(model, patterns, 0.2)
    regions = Regions(model, patterns)
    compiled = regions.compile(model, dynamic=True)
    with torch.no_grad():
        for rows in (40, 3, 17, 200):
            x = torch.randn(rows, 96)
            agree(compiled(x), model, x)
    assert len(regions.methods) == 2


def test_weights_that_change() -> None:
    """Other numbers in the same places are taken; a zero that is none any more is an error that says what to do."""
    model: nn.Module = nn.Sequential(nn.Linear(96, 128)).eval()
    patterns: Patterns = {"0.weight": (1, 1)}
    prune(model, patterns, 0.05)
    regions = Regions(model, patterns)
    compiled, x = regions.compile(model), torch.randn(40, 96)
    weight = model.get_parameter("0.weight")
    with torch.no_grad():
        compiled(x)
        weight.mul_(-2.0)
        agree(compiled(x), model, x)
        weight.copy_(torch.randn(128, 96))
        with pytest.raises(
            InputError, match=r"had \d+ when the model was compiled: torch._dynamo.reset\(\) and compile again"
        ):
            compiled(x)
    assert regions.methods == ["rows"]


def test_query_key_and_value_keep_their_own_blocks() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(64, 96), nn.Linear(64, 96)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.query(x) @ self.key(x).mT
            return result

    model, patterns = Attention().eval(), dict.fromkeys(("query.weight", "key.weight"), (16, 1))
    prune(model, patterns, 0.2)
    regions = Regions(model, patterns)
    with torch.no_grad():
        x = torch.randn(50, 64)
        agree(regions.compile(model)(x), model, x)
    assert regions.methods  # equal sizes and counts of blocks may share one kernel
