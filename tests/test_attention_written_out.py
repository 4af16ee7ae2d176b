"""Attention that a model writes out runs in one kernel, and equals what the formula gives in eager."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from exactness import assert_exact
from torch import Tensor

import effc

Formula = Callable[..., Tensor]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """As BERT's eager attention in transformers."""
    weights = torch.matmul(q, k.transpose(2, 3)) * 0.25 + mask
    weights = torch.nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    weights = torch.nn.functional.dropout(weights, p=0.1, training=False)
    return torch.matmul(weights, v).transpose(1, 2).contiguous()


def windows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """As Swin's: a bias for each head, then a mask for each of the windows, seen in five dimensions."""
    b, h, n, _ = q.shape
    weights = (q * 0.25) @ k.transpose(-2, -1) + bias
    weights = weights.view(b // mask.shape[0], mask.shape[0], h, n, n) + mask[:, None]
    return weights.view(b, h, n, n).softmax(-1) @ v


def batched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads in the batch, as in diffusers."""
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    nothing = q.new_zeros(q.shape[0], q.shape[1], k.shape[1])
    return torch.bmm(torch.baddbmm(nothing, q, k.mT, beta=0, alpha=0.25).softmax(-1), v)


def summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bhij", q, k) * 0.25
    return torch.einsum("bhij,bhjd->bhid", weights.softmax(-1), v)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two heads read each head of k and v, repeated as in transformers."""
    b, h, n, d = k[:, ::2].shape
    k, v = (t[:, ::2, None].expand(b, h, 2, n, d).reshape(b, 2 * h, n, d) for t in (k, v))
    return plain(q, k, v)


def kernels(formula: Callable[..., object], *args: Tensor) -> list[str]:
    report = effc.explain(formula, *args)
    return [kernel.template for graph in report.graphs for region in graph.regions for kernel in region.kernels]


def qkv(length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(4, length, 6, 16, dtype=dtype).transpose(1, 2) for _ in range(3)]


FORMULAS: dict[str, tuple[Formula, Callable[[int], list[Tensor]]]] = {
    "plain": (plain, lambda n: []),
    "masked": (masked, lambda n: [torch.randn(4, 1, 1, n)]),
    "a mask for each pair": (masked, lambda n: [torch.randn(n, n)]),
    "windows": (windows, lambda n: [torch.randn(6, n, n), torch.randn(2, n, n)]),
    "batched": (batched, lambda n: []),
    "summed": (summed, lambda n: []),
    "grouped": (grouped, lambda n: []),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_one_kernel_as_exact_as_eager(name: str) -> None:
    torch.manual_seed(0)
    formula, extra = FORMULAS[name]
    args = [*qkv(49), *extra(49)]
    with torch.no_grad():
        assert kernels(formula, *args).count("attention") == 1
        assert "contraction" not in kernels(formula, *args)
        assert_exact(formula, args, torch.compile(formula, backend="effc", options={"fallback": "error"}))


@pytest.mark.parametrize("name", ["plain", "masked", "summed"])
def test_lengths_known_only_at_run_time(name: str) -> None:
    formula, extra = FORMULAS[name]
    compiled = torch.compile(formula, backend="effc", dynamic=True, options={"fallback": "error"})
    with torch.no_grad():
        for length in (37, 5, 64):
            args = [*qkv(length), *extra(length)]
            torch.testing.assert_close(compiled(*args), formula(*args), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_nearer_to_the_truth_than_eager() -> None:
    args = [*qkv(49, torch.bfloat16), torch.randn(4, 1, 1, 49, dtype=torch.bfloat16)]
    with torch.no_grad():
        found, eager = torch.compile(masked, backend="effc")(*args), masked(*args)
    true = (args[0].double() @ args[1].double().mT * 0.25 + args[3].double()).softmax(-1) @ args[2].double()
    true = true.transpose(1, 2)
    assert (found.double() - true).norm() <= (eager.double() - true).norm()


def test_rows_of_minus_infinity_and_nan_come_out_as_eagers() -> None:
    q, k, v = qkv(20)
    mask = torch.zeros(4, 1, 20, 20)
    mask[0, 0, 3] = -torch.inf
    mask[1, 0, 5] = torch.finfo(torch.float32).min
    q[2, 1, 7, 3] = torch.nan
    v[3, 2, 4, 1] = torch.inf
    with torch.no_grad():
        found, expected = torch.compile(masked, backend="effc")(q, k, v, mask), masked(q, k, v, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_probabilities_that_are_returned_too_keep_the_formula() -> None:
    def both(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = (q @ k.mT).softmax(-1)
        return weights @ v, weights

    args = qkv(9)
    with torch.no_grad():
        assert "attention" not in kernels(both, *args)
        torch.testing.assert_close(torch.compile(both, backend="effc")(*args), both(*args))


def test_a_scaled_mask_keeps_the_formula() -> None:
    def scaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return ((q @ k.mT + mask) * 0.5).softmax(-1) @ v

    args = [*qkv(9), torch.randn(9, 9)]
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(scaled, backend="effc")(*args), scaled(*args))


def test_training_keeps_the_probabilities_for_the_gradient() -> None:
    args = [t.requires_grad_() for t in qkv(9)]
    compiled = torch.compile(plain, backend="effc")
    found = torch.autograd.grad(compiled(*args).square().sum(), args)
    expected = torch.autograd.grad(plain(*args).square().sum(), args)
    torch.testing.assert_close(found, expected)
