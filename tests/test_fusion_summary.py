"""What the tool says of blocks that were measured: how many are fused, which lose, what is reached of high ceilings."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
_tool: Any = import_module("fusion_summary")
Measured, summary = _tool.Measured, _tool.summary


def test_losses_and_high_ceilings_are_counted() -> None:
    rows = [
        Measured("a", 0.9, True, 1.1),
        Measured("b", 1.2, True, 1.25),
        Measured("c", 1.1, True, 1.4),
        Measured("d", 0.8, False, 1.0),
    ]
    fused, lost, high = summary(rows)
    assert "3 of 4 blocks, 0.90 to 1.20 times faster, median 1.10." in fused
    assert "timed twice, 0.80 to 0.80" in fused
    assert lost.endswith("1 (33% of the fused): a 0.90.")  # "d" is the same kernels twice
    assert "2, of which 1 reach 75% of the gain" in high
    assert high.endswith("c 1.10 of 1.40: 25%.")


def test_nothing_fused() -> None:
    lines = list(summary([Measured("a", 0.5, False, 1.0)]))
    assert "0 of 1 blocks" in lines[0]
    assert lines[1].endswith("0.")
    assert lines[2].endswith("0, of which 0 reach 75% of the gain.")


@pytest.mark.parametrize(("ceiling", "share"), [(1.19, None), (1.2, 0.5), (1.4, 0.25)])
def test_the_share_is_of_ceilings_that_are_worth_it(ceiling: float, share: float | None) -> None:
    assert Measured("a", 1.1, True, ceiling).share == (share if share is None else pytest.approx(share))
