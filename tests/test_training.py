"""Training through ``backend="effc"`` follows eager's loss curve."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effc.bench.models.vision import FashionResNet


def batches(steps: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Images ``[size, 1, 28, 28]`` of ten noisy prototypes, and their labels: learnable in a few steps."""
    g = torch.Generator().manual_seed(7)
    prototypes = F.interpolate(torch.randn(10, 1, 4, 4, generator=g), size=28, mode="bilinear") * 2
    found = []
    for _ in range(steps):
        labels = torch.randint(0, 10, (size,), generator=g)
        found.append((prototypes[labels] + torch.randn(size, 1, 28, 28, generator=g), labels))
    return found


def losses(model: nn.Module, compiled: Callable[[Tensor], Tensor], data: list[tuple[Tensor, Tensor]]) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    curve = []
    for images, labels in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(compiled(images), labels)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def test_follows_eagers_loss_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training multiplies rounding step by step; ours may stray from a float64 training no more than 5 times as far
    as eager. With SiLU: where a ReLU's input is within a rounding error of 0, its gradient is a toss-up, and so is all that
    follows.
    """
    monkeypatch.setattr(F, "relu", F.silu)
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = FashionResNet(8).train()
    ours, wide = copy.deepcopy(eager), copy.deepcopy(eager).double()
    data = batches(20, 32)
    true = losses(wide, wide, [(images.double(), labels) for images, labels in data])
    expected = losses(eager, eager, data)
    found = losses(ours, torch.compile(ours, backend="effc"), data)
    assert expected[-1] < 0.5 * expected[0]
    strayed = 1e-6
    for step, (a, b, r) in enumerate(zip(found, expected, true, strict=True)):
        strayed = max(strayed, abs(b - r))
        assert abs(a - r) <= 5 * strayed, (step, found, expected)
    for name, r in wide.state_dict().items():
        error, allowed = ((state[name] - r).double().norm() for state in (ours.state_dict(), eager.state_dict()))
        assert error <= 5 * allowed + 1e-5 * r.double().norm(), name


def test_each_loss_of_a_training_with_relus() -> None:
    """Each step of a float64 training starts from its weights: loss and running statistics, which a ReLU's side near 0 does not
    change, held to 5 times eager's error.
    """
    torch._dynamo.reset()
    torch.manual_seed(0)
    wide = FashionResNet(8).train().double()
    eager, ours = copy.deepcopy(wide).float(), copy.deepcopy(wide).float()
    compiled = torch.compile(ours, backend="effc")
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1, momentum=0.9)
    strayed = 1e-6
    for images, labels in batches(20, 32):
        start = {name: t.clone() for name, t in wide.state_dict().items()}
        for model in (eager, ours):
            model.load_state_dict(start)
        exact = copy.deepcopy(eager).double()  # of the same rounded weights
        a, b = F.cross_entropy(compiled(images), labels), F.cross_entropy(eager(images), labels)
        r = F.cross_entropy(exact(images.double()), labels)
        strayed = max(strayed, abs(b.item() - r.item()))
        assert abs(a.item() - r.item()) <= 5 * strayed
        for name, t in exact.state_dict().items():
            error, allowed = ((m.state_dict()[name] - t).double().norm() for m in (ours, eager))
            assert error <= 5 * allowed + 1e-6 * t.double().norm(), name
        optimizer.zero_grad()
        F.cross_entropy(wide(images.double()), labels).backward()
        optimizer.step()


def test_gradients_are_exact() -> None:
    """One step: each parameter's gradient against float64, held to eager's error."""
    torch._dynamo.reset()
    torch.manual_seed(1)
    model = FashionResNet(8).train()
    ((images, labels),) = batches(1, 8)
    wide = copy.deepcopy(model).double()
    ours = copy.deepcopy(model)
    F.cross_entropy(wide(images.double()), labels).backward()
    F.cross_entropy(model(images), labels).backward()
    F.cross_entropy(torch.compile(ours, backend="effc")(images), labels).backward()
    for (name, a), b, r in zip(ours.named_parameters(), model.parameters(), wide.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert r.grad is not None
        error, eager = ((g.double() - r.grad).norm() / r.grad.norm() for g in (a.grad, b.grad))
        assert error <= max(2 * eager, 4 * torch.finfo(torch.float32).eps), name
