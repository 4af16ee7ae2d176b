"""The comparison that all other tests rely on: it must catch what is wrong, and let pass what is right."""

from __future__ import annotations

from collections.abc import Callable

import exactness
import float64
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor]:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype),)


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x * 3, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_eager_is_exact(dtype: torch.dtype) -> None:
    result = exactness.assert_exact(softmax, inputs(7, 33, dtype=dtype), softmax, strides=True)
    assert result.worst_ratio() == 1.0
    assert result.leaves[0].eager_l2 < torch.finfo(dtype).eps


def test_another_order_of_summation_is_exact() -> None:
    exactness.assert_exact(lambda x: x.sum(-1), inputs(5, 1000), lambda x: x.reshape(5, 10, 100).sum(-1).sum(-1))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda x: softmax(x) * (1 + 3e-6), "relative L2"),
        (lambda x: softmax(x).index_fill(0, torch.tensor([2]), 0.0), "element"),
        (lambda x: softmax(x).double(), "dtype torch.float64, eager torch.float32"),
        (lambda x: softmax(x)[:, :-1], "shape"),
        (lambda x: softmax(x).mT.contiguous().mT, "strides"),
        (lambda x: (softmax(x),), "structure"),
        (lambda x: x.copy_(softmax(x)), "aliasing"),
        (lambda x: softmax(x.mul_(1.0001)), "input"),
    ],
)
def test_catches(wrong: Callable[[Tensor], Tensor], says: str) -> None:
    with pytest.raises(exactness.Inexact, match=says):
        exactness.assert_exact(softmax, inputs(7, 33), wrong, strides=True)


def test_one_wrong_element_among_many_is_caught() -> None:
    """It hides in the relative L2, but not in ulp."""

    def wrong(x: Tensor) -> Tensor:
        y = torch.exp(x)
        y[123, 45] *= 1 + 2e-6
        return y

    with pytest.raises(exactness.Inexact, match="element 12345 is off by"):
        exactness.assert_exact(torch.exp, inputs(1000, 100), wrong)


def test_cancellation_is_no_error_but_a_wrong_element_in_it_is() -> None:
    def difference(x: Tensor) -> Tensor:
        return (x + 1000) - (x * 1.5 + 1000)

    exactness.assert_exact(difference, inputs(500), lambda x: torch.add(x, -(x * 1.5)))
    with pytest.raises(exactness.Inexact):
        exactness.assert_exact(difference, inputs(500), lambda x: difference(x) + 0.01)


def product(x: Tensor, y: Tensor) -> Tensor:
    return torch.cos(x @ y.mT * 20)


def in_other_order(x: Tensor, y: Tensor) -> Tensor:
    return torch.cos((x.flip(1) * 20) @ y.flip(1).mT)


@pytest.mark.parametrize("rows", [5, 8, 40])
def test_float64_has_no_error_of_eager_to_be_held_to(rows: int) -> None:
    """Eager is the reference itself: another order of sums is right, one rounding to float32 among them is wrong."""
    x, y = inputs(rows, 300, dtype=torch.float64)[0], inputs(8, 300, dtype=torch.float64)[0] * 2
    exactness.assert_exact(product, (x, y), in_other_order)
    with pytest.raises(exactness.Inexact, match="relative L2"):
        exactness.assert_exact(product, (x, y), lambda x, y: torch.cos((x @ y.mT * 20).float().double()))
    with pytest.raises(exactness.Inexact, match="relative L2"):
        exactness.assert_exact(product, (x, y), lambda x, y: product(x, y) * (1 + 1e-9))


def test_each_op_is_held_to_its_own_precision() -> None:
    """Part of the model is in bfloat16; that allows the other part no more."""

    def model(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x + 1).sin(), y.exp()

    (x,) = inputs(30)
    exactness.assert_exact(model, (x, x.bfloat16()), model)
    with pytest.raises(exactness.Inexact, match=r"output\[0\]"):
        exactness.assert_exact(model, (x, x.bfloat16()), lambda x, y: ((x + 1).bfloat16().float().sin(), y.exp()))


def test_what_is_made_from_integers_is_rounded_too() -> None:
    """The difference is exactly 0 in eager and float64; where a product is fused into it, it is not."""

    def model(i: Tensor) -> Tensor:
        x = i * 0.3
        return x[0] * x[1] - x[2] * x[3]

    exactness.assert_exact(model, (torch.tensor([1, 4, 4, 1]),), lambda i: model(i) + 1.8e-8)
    with pytest.raises(exactness.Inexact):
        exactness.assert_exact(model, (torch.tensor([1, 4, 4, 1]),), lambda i: model(i) + 1e-5)


def test_recurrent_layers_have_a_response() -> None:
    """Eager's is one op of oneDNN's, without float64."""
    lstm = nn.LSTM(4, 6).eval()
    with torch.no_grad():
        exactness.assert_exact(lstm, inputs(3, 2, 4), lstm)
        with pytest.raises(exactness.Inexact):
            exactness.assert_exact(lstm, inputs(3, 2, 4), lambda x: pytree.tree_map(lambda t: t * 1.001, lstm(x)))


def test_integers_are_bit_equal() -> None:
    with pytest.raises(exactness.Inexact, match="1 of 40 integers differ"):
        exactness.assert_exact(
            lambda x: (x * 0).int(), inputs(40), lambda x: (x * 0).int().index_fill(0, torch.tensor([7]), 1)
        )


@pytest.mark.parametrize(
    ("ours", "says"), [(0.0, "NaN differs"), (float("inf"), "NaN differs"), (float("nan"), "[+]inf differs")]
)
def test_special_values_stand_where_eagers_do(ours: float, says: str) -> None:
    def model(x: Tensor) -> Tensor:
        return x * torch.tensor([1.0, float("inf"), float("nan")])

    def wrong(x: Tensor) -> Tensor:
        y = model(x)
        y[1 if says.startswith("[") else 2] = ours
        return y

    with pytest.raises(exactness.Inexact, match=says):
        exactness.assert_exact(model, (torch.tensor([1.0, 2.0, 3.0]),), wrong)


def test_sign_of_zero() -> None:
    with pytest.raises(exactness.Inexact, match="sign of zero"):
        exactness.assert_exact(lambda x: x * -0.0, (torch.ones(3),), lambda x: x * 0.0)


def test_written_buffers_are_compared_and_put_back() -> None:
    norm = nn.BatchNorm1d(4).train()
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    exactness.assert_exact(norm, inputs(6, 4), norm)
    with pytest.raises(exactness.Inexact, match="running_mean"):
        exactness.assert_exact(norm, inputs(6, 4), lambda x: nn.functional.batch_norm(x, None, None, training=True))
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())


def test_copies_keep_layout_and_sharing() -> None:
    base = torch.arange(24.0).reshape(4, 6)
    views = (base.t(), base[1:, ::2], base.expand(2, 4, 6))
    copies = float64.clone_tree(views)
    assert [c.stride() for c in copies] == [v.stride() for v in views]
    assert all(torch.equal(c, v) for c, v in zip(copies, views, strict=True))
    copies[0][0, 1] = -1
    assert copies[1][0, 0] == -1
    assert base[1, 0] == 6


def test_eagers_luck_in_the_few_elements_that_carry_the_error_binds_nobody() -> None:
    """One row of 200 cancels and holds all of the error; where all rows do, eager's error is no luck."""
    few = torch.zeros(200, 8).index_fill(0, torch.tensor(3), 1e4)

    def sums(x: Tensor, large: Tensor) -> Tensor:
        return ((x.double() + large.double()) - large.double()).float()

    def rounded(x: Tensor, large: Tensor) -> Tensor:
        return (x + large) - large

    def lucky(large: Tensor) -> exactness.Comparison:
        x = inputs(200, 8)[0]
        ours, eager = (float64.run(f, (x, large), None) for f in (rounded, sums))
        return exactness.judge(rounded, (x, large), ours, eager)

    assert not lucky(few).problems
    assert any("relative L2" in p for p in lucky(torch.full((200, 8), 1e4)).problems)
