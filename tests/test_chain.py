"""Chains of contractions in one kernel equal float64's, whatever the sizes and threads."""

from __future__ import annotations

import pytest
import torch
from chain_cases import Pair


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


@pytest.mark.parametrize("m", [2, 13, 31, 97, 300])
@pytest.mark.parametrize(("k", "r", "n"), [(33, 17, 50), (64, 24, 64), (16, 48, 3), (7, 160, 129)])
def test_known_numbers_of_rows(m: int, k: int, r: int, n: int) -> None:
    product = Pair(m, k, r, n)
    for threads in (1, 2, 3):
        product.check(threads=threads)


@pytest.mark.parametrize(("k", "r", "n"), [(33, 17, 50), (96, 24, 144)])
def test_one_object_serves_every_number_of_rows(k: int, r: int, n: int) -> None:
    product = Pair(None, k, r, n)
    for m in (0, 1, 2, 7, 8, 9, 63, 64, 65, 500):
        product.check(m, threads=1 + m % 3)
