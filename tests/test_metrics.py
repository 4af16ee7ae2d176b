"""How far a metric over some batches may be off for others."""

from __future__ import annotations

import math

import pytest
import torch

from effc.metrics import measured, relative_l2


def batches(*errors: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """References and outputs that are off by these shares."""
    references = [torch.ones(4, 8) for _ in errors]
    return references, [r * (1 + e) for r, e in zip(references, errors, strict=True)]


def test_the_margin_is_that_of_students_t() -> None:
    """Of 0.01, 0.02 and 0.03: 4.3027 (two degrees of freedom) times 0.01 over the root of 3."""
    references, outputs = batches(0.01, 0.02, 0.03)
    found = measured("relative_l2", references, outputs, references)
    assert found.value == pytest.approx(relative_l2(references, outputs, references))
    assert found.margin == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)


def test_batches_that_are_alike_have_no_margin_and_one_tells_nothing() -> None:
    references, outputs = batches(0.5, 0.5)
    assert measured("relative_l2", references, outputs, references).margin == pytest.approx(0.0, abs=1e-7)
    assert measured("relative_l2", references[:1], outputs[:1], references[:1]).margin is None


def test_the_margin_holds_as_often_as_it_says() -> None:
    """Errors of 400 sets of four batches around 0.5: their mean is within the margin in 95 % of the sets, less four standard deviations."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        references, outputs = batches(*(0.5 + 0.1 * torch.randn(4, generator=generator)).tolist())
        found = measured(lambda r, y, b: float((y / r).mean()) - 1, references, outputs, references)
        assert found.margin is not None
        held += abs(found.value - 0.5) <= found.margin
    assert held >= 380 - 4 * (400 * 0.05 * 0.95) ** 0.5


def test_batches_that_were_seen_tell_how_errors_vary_and_not_how_large_they_are() -> None:
    """Of one batch alone nothing tells that; three others, off by a tenth of it, vary by 0.001: 4.3027 times that."""
    references, outputs = batches(0.001, 0.002, 0.003, 0.02)
    found = measured("relative_l2", references, outputs, references, seen=3)
    assert found.value == pytest.approx(0.02, rel=1e-5)
    assert found.margin == pytest.approx(4.3027 * 0.001, rel=1e-3)
    assert found.bound == pytest.approx(0.02 + 4.3027 * 0.001, rel=1e-3)
    alone = measured("relative_l2", references[2:], outputs[2:], references[2:], seen=1)
    assert (alone.margin, alone.bound) == (None, alone.value)


def test_the_margin_of_a_few_batches_held_out_holds_as_often_as_it_says() -> None:
    """Errors of 400 sets of two batches around 0.5, and of six that were seen around 0.3."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        means = torch.tensor([0.3] * 6 + [0.5] * 2)
        references, outputs = batches(*(means + 0.1 * torch.randn(8, generator=generator)).tolist())
        found = measured(lambda r, y, b: float((y / r).mean()) - 1, references, outputs, references, seen=6)
        assert found.margin is not None
        held += abs(found.value - 0.5) <= found.margin
    assert held >= 380 - 4 * (400 * 0.05 * 0.95) ** 0.5


def test_no_difference_in_few_rows_says_little() -> None:
    """Of 64 rows none: the share is below 1 - 0.025 ** (1 / 64) with a confidence of 97.5 %."""
    logits = [torch.randn(32, 10) for _ in range(2)]
    found = measured("top1_disagreement", logits, logits, logits)
    assert found.value == 0.0
    assert found.margin == pytest.approx(1 - 0.025 ** (1 / 64))
    assert measured("top1_disagreement", logits, [-x for x in logits], logits).margin == 0.0


def test_a_metric_that_is_not_finite_has_no_margin() -> None:
    references, outputs = batches(0.1, float("nan"))
    found = measured("relative_l2", references, outputs, references)
    assert math.isnan(found.value)
    assert found.margin is not None
    assert math.isnan(found.margin)
