"""Parallel convolutions become one, exactly: where they may, and where not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from exactness import assert_exact, judge
from float64 import run as numbers
from torch import Tensor, nn
from torch.nn import functional as F

import effc
from effc.compiler.capture import record
from effc.compiler.ir.spec import KernelSpec

Compiler = Callable[..., Callable[..., Any]]


class Sum(nn.Module):
    """Branches of one input, added."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branches[0](x)
        for branch in self.branches[1:]:
            y = y + branch(x)
        return y


def normed(i: int, o: int, k: Any, *, dim: int = 2, dilation: int = 1, **options: Any) -> nn.Sequential:
    """A convolution that keeps the size where its stride is 1, with a batch norm."""
    sizes = [k] * dim if isinstance(k, int) else list(k)
    padding = [(s - 1) * dilation // 2 for s in sizes]
    layer, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dim - 1]
    conv: nn.Module = layer(i, o, sizes, padding=padding, dilation=dilation, bias=False, **options)  # type: ignore[arg-type]
    return nn.Sequential(conv, norm(o))


def trained(model: nn.Module) -> nn.Module:
    """``model`` with statistics and factors as training leaves them."""
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.2, 3)  # type: ignore[union-attr]
            norm.weight.normal_()
            norm.bias.normal_()
    return model.eval()


def products(spec: KernelSpec) -> int:
    """Contractions in a kernel."""
    return sum(i.op == "contract" for i in spec.body) + sum(map(products, spec.stages))


def run(model: nn.Module, *inputs: Any, **options: Any) -> tuple[Callable[..., Any], int]:
    """``model`` compiled, and how many contractions a call of it runs."""
    fast: Any = torch.compile(model, backend="effc", fullgraph=True, options={"fallback": "error", **options})
    with torch.no_grad(), record() as recording:
        fast(*inputs)
    return fast, sum(products(p.kernels[call.kernel]) for p, _ in recording.programs for call in p.calls)


def check(model: nn.Module, *inputs: Any, contractions: int) -> None:
    """``model`` is exact with as many contractions."""
    fast, found = run(trained(model), *inputs)
    assert found == contractions
    with torch.no_grad():
        assert_exact(model, inputs, fast)


def as_one(model: nn.Module, shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """The one convolution that ``model``, affine and alike at all places, is: its derivatives in float64.

    It sums as many products as ours does, so it is the yardstick for rounding: eager's branches sum fewer each.
    """
    wide, dims = copy.deepcopy(model).double(), range(len(shape) - 2)
    x = torch.zeros(1, shape[1], *(40 for _ in dims), dtype=torch.float64, requires_grad=True)
    y = wide(x)
    center = tuple(n // 2 for n in y.shape[2:])
    stride = [round(40 / n) for n in y.shape[2:]]
    response = torch.stack([torch.autograd.grad(row[center], x, retain_graph=True)[0][0] for row in y[0]])
    reached = response.abs().sum((0, 1)).nonzero()
    first, last = reached.amin(0).tolist(), reached.amax(0).tolist()
    at: Any = (..., *(slice(a, b + 1) for a, b in zip(first, last, strict=True)))
    weight = response[at]
    before = [center[d] * stride[d] - first[d] for d in dims]
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[len(dims) - 1]
    bias = y[(0, slice(None), *center)].detach()

    def one(x: Tensor) -> Tensor:
        inside: Any = (..., *(slice(n) for n in wide(x.double()).shape[2:]))
        around = [n for d in reversed(dims) for n in (before[d], weight.shape[2 + d] * stride[d])]
        z: Tensor = convolve(F.pad(x, around), weight.to(x.dtype), bias.to(x.dtype), stride=stride)
        return z[inside]

    return one


class RepMixer(nn.Module):
    """FastViT's: ``x + scale * (mixer(x) - norm(x))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.scale = nn.BatchNorm2d(width), nn.Parameter(torch.randn(width, 1, 1))
        self.mixer = Sum(normed(width, width, 3, groups=width), normed(width, width, 1, groups=width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.scale * (self.mixer(x) - self.norm(x))
        return y


class Started(Sum):
    """The sum as Python's ``sum`` takes it, from 0 on."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = sum(branch(x) for branch in self.branches)
        return y


MERGED: dict[str, tuple[nn.Module, Sequence[int]]] = {
    "RepVGG": (Sum(normed(6, 6, 3), normed(6, 6, 1), nn.BatchNorm2d(6)), (2, 6, 9, 7)),
    "RepVGG, grouped": (
        Sum(normed(8, 8, 3, groups=2), normed(8, 8, 1, groups=2), nn.BatchNorm2d(8)),
        (1, 8, 5, 6),
    ),
    "RepVGG, stride 2": (Sum(normed(5, 9, 3, stride=2), normed(5, 9, 1, stride=2)), (2, 5, 9, 8)),
    "ACNet": (Sum(normed(7, 5, 3), normed(7, 5, (1, 3)), normed(7, 5, (3, 1))), (1, 7, 6, 5)),
    "MobileOne": (
        Started(*(normed(16, 16, 3, groups=16) for _ in range(3)), normed(16, 16, 1, groups=16), nn.BatchNorm2d(16)),
        (1, 16, 7, 7),
    ),
    "UniRepLKNet": (
        Sum(
            normed(16, 16, 13, groups=16),
            *(normed(16, 16, k, dilation=d, groups=16) for k, d in ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))),
        ),
        (1, 16, 17, 15),
    ),
    "RepMixer": (RepMixer(24), (2, 24, 7, 9)),
    "sum of Inception": (Sum(nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 5, padding=2)), (1, 4, 8, 9)),
    "identity": (Sum(nn.Conv2d(6, 6, 3, padding=1), nn.Identity()), (2, 6, 5, 4)),
    "padding of its own": (Sum(nn.Conv2d(4, 5, 4, padding=2), nn.Conv2d(4, 5, 2, padding=1)), (1, 4, 6, 7)),
    "dilation of both": (Sum(normed(4, 4, 5, dilation=2), normed(4, 4, 3, dilation=4), nn.Identity()), (1, 4, 9, 9)),
    "one dimension": (Sum(normed(4, 6, 5, dim=1), normed(4, 6, 3, dim=1, dilation=2), normed(4, 6, 1, dim=1)), (2, 4, 19)),
    "three dimensions": (Sum(normed(3, 3, 3, dim=3), normed(3, 3, 1, dim=3), nn.BatchNorm3d(3)), (1, 3, 4, 5, 6)),
}  # fmt: skip


@pytest.mark.parametrize("kind", MERGED)
def test_branches_become_one(kind: str) -> None:
    model, shape = MERGED[kind]
    x = torch.randn(shape)
    fast, found = run(trained(model), x)
    assert found == 1
    one = as_one(model, shape)
    with torch.no_grad():
        torch.testing.assert_close(one(x.double()), copy.deepcopy(model).double()(x.double()), rtol=1e-12, atol=1e-12)
        judge(model, (x,), numbers(fast, (x,)), numbers(one, (x,))).require()


def test_float64() -> None:
    """It has no fast contraction: the loop nest sums products."""
    model = trained(Sum(normed(6, 6, 3), normed(6, 6, 1), nn.BatchNorm2d(6))).double()
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    fast, _ = run(model, x)
    with torch.no_grad():
        assert_exact(model, (x,), fast)
        (note,) = effc.explain(model, x).notes
    assert "became one convolution" in note


def test_what_else_is_added_stays() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sum = Sum(normed(6, 6, 3), normed(6, 6, 1))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z: Tensor = torch.relu(y - self.sum(x))
            return z

    check(Model(), torch.randn(2, 6, 5, 7), torch.randn(2, 6, 5, 7), contractions=1)


@pytest.mark.parametrize("which", ["weights", "input"])
def test_the_result_lies_in_memory_as_eager_has_it(which: str) -> None:
    model, x = trained(Sum(nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1))), torch.randn(2, 6, 5, 7)
    if which == "weights":
        for branch in model.branches:  # type: ignore[union-attr]
            branch.weight.data = branch.weight.data.to(memory_format=torch.channels_last)
    else:
        x = x.to(memory_format=torch.channels_last)
    fast, _ = run(model, x)
    with torch.no_grad():
        assert_exact(model, (x,), fast, strides=True)


def test_dynamic_sizes(compiled: Compiler) -> None:
    model = trained(Sum(normed(6, 6, 3), normed(6, 6, 1), nn.BatchNorm2d(6)))
    fast = compiled(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 6, 9, 7), (3, 6, 5, 11)):
            assert_exact(model, (torch.randn(shape),), fast)


def test_changed_weights_are_followed(compiled: Compiler) -> None:
    model, x = trained(Sum(normed(6, 6, 3), normed(6, 6, 1), nn.BatchNorm2d(6))), torch.randn(2, 6, 9, 7)
    with torch.no_grad():
        fast = compiled(model, fullgraph=True)
        fast(x)
        state = dict(model.state_dict(keep_vars=True))
        for changed in ("branches.0.0.weight", "branches.1.1.bias", "branches.2.running_var"):
            before = fast(x).clone()
            state[changed].mul_(3)
            assert not torch.allclose(fast(x), before)
            assert_exact(model, (x,), fast)


def test_the_report_names_them() -> None:
    model, x = trained(Sum(normed(6, 6, 3), normed(6, 6, 1), nn.BatchNorm2d(6))), torch.randn(2, 6, 9, 7)
    with torch.no_grad():
        (note,) = effc.explain(model, x).notes
    assert "2 convolutions and an identity of one input became one convolution" in note
    assert "test_branches.py:" in note


# -- where they may not ---------------------------------------------------------------------------------------------
class Both(Sum):
    """Another reader of a branch."""

    def forward(self, x: Tensor) -> Any:
        y = self.branches[0](x)
        return y + self.branches[1](x), torch.tanh(y)


class Between(Sum):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(self.branches[0](x)) + self.branches[1](x)
        return y


class Two(Sum):
    """Two inputs."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branches[0](x) + self.branches[1](x.flip(0))
        return y


class Given(nn.Module):
    """Weights that are no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        weights = x[:1, :, :3, :3] * 0.1
        return nn.functional.conv2d(x, weights, padding=1) + nn.functional.conv2d(x, weights[..., :1, :1])


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (Both(normed(6, 6, 3), normed(6, 6, 1)), 2),
        (Between(normed(6, 6, 3), normed(6, 6, 1)), 2),
        (Two(normed(6, 6, 3), normed(6, 6, 1)), 2),
        (Sum(normed(6, 6, 3), normed(6, 6, 1, groups=2)), 2),
        (Sum(nn.Conv2d(6, 6, 3, padding=1, stride=2), nn.Conv2d(6, 6, 1)), 2),
        (Sum(normed(6, 6, 3), normed(6, 6, 3, dilation=4)), 2),
        (Sum(normed(6, 6, (1, 5)), normed(6, 6, (5, 1)), normed(6, 6, 1)), 2),
        (Sum(nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 1, 3, padding=1)), 2),
        (Given(), 2),
    ],
    ids=[
        "read elsewhere", "relu between", "two inputs", "groups", "strides", "dilation without a kernel of that size",
        "no square kernel", "one channel for all", "weights from the input",
    ],
)  # fmt: skip
def test_branches_that_differ_stay(model: nn.Module, left: int) -> None:
    size = (1, 1) if "stride=(2, 2)" in str(model) else (9, 7)  # of a single pixel, strides leave one
    check(model, torch.randn(2, 6, *size), contractions=left)


def test_sixteen_bit_weights_are_not_rounded_again() -> None:
    model = trained(Sum(normed(6, 6, 3), normed(6, 6, 1))).bfloat16()
    assert run(model, torch.randn(2, 6, 9, 7, dtype=torch.bfloat16))[1] == 2


def test_training_uses_the_weights_in_place(compiled: Compiler) -> None:
    model, x = trained(Sum(normed(6, 6, 3), normed(6, 6, 1))), torch.randn(2, 6, 9, 7)
    compiled(model)(x).sum().backward()
    weight: Any = model.branches[0][0].weight  # type: ignore[index, union-attr]
    given = weight.grad.clone()
    model.zero_grad()
    model(x).sum().backward()
    assert torch.allclose(weight.grad, given, rtol=1e-4, atol=1e-4)


def test_compressed_weights_stay() -> None:
    """Codes, and weights with zeros that kernels leave out."""
    model, x = trained(Sum(normed(32, 32, 3), normed(32, 32, 1))), torch.randn(1, 32, 9, 7)
    codes = {"activations": "tensor", "calibration": effc.calibrate(model, [(x,)])}
    assert run(model, x, passes={"quantize": codes})[1] == 2
    torch._dynamo.reset()
    assert run(model, x, passes={"sparsity": {"pattern": "unstructured", "sparsity": 0.5}})[1] == 2
