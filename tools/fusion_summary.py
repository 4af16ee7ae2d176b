"""What the rows of ``block_fusion.py`` say together: how many blocks are fused, which of them lose, what is reached of high ceilings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

#: A share of time that fusing may cost.
LOSS = 0.03
#: A ceiling from which on fusing is worth its while, and how much of its gain is asked.
WORTH, ASKED = 1.2, 0.75


@dataclass(frozen=True)
class Measured:
    """``block``: kind, side and width. ``gained``: how many times faster than apart; ``fused``: whether kernels became one."""

    block: str
    gained: float
    fused: bool
    ceiling: float

    @property
    def share(self) -> float | None:
        """Of the ceiling's gain, where that is worth its while."""
        return (self.gained - 1) / (self.ceiling - 1) if self.ceiling >= WORTH else None


def summary(rows: Sequence[Measured]) -> Iterator[str]:
    """Lines of markdown."""
    fused, same = ([row for row in rows if row.fused is kind] for kind in (True, False))
    lost = sorted((row for row in fused if row.gained < 1 - LOSS), key=lambda row: row.gained)
    high = [row for row in rows if row.share is not None]
    enough = sum((row.share or 0) >= ASKED for row in high)
    yield f"- **Fused**: {len(fused)} of {len(rows)} blocks{_span(fused)}. Of the others the same kernels were timed twice{_span(same)}."
    part = f" ({len(lost) / len(fused):.0%} of the fused)" if fused else ""
    yield f"- **Lose more than {LOSS:.0%}**: {len(lost)}{part}{_each(lost)}"
    yield f"- **Ceilings of {WORTH} or more**: {len(high)}, of which {enough} reach {ASKED:.0%} of the gain{_each(high)}"


def _span(rows: Sequence[Measured]) -> str:
    if not rows:
        return ""
    gains = [row.gained for row in rows]
    return f", {min(gains):.2f} to {max(gains):.2f} times faster, median {median(gains):.2f}"


def _each(rows: Sequence[Measured]) -> str:
    if not rows:
        return "."
    shares = (f" of {row.ceiling:.2f}: {row.share:.0%}" if row.share is not None else "" for row in rows)
    return (
        ": " + "; ".join(f"{row.block} {row.gained:.2f}{share}" for row, share in zip(rows, shares, strict=True)) + "."
    )
