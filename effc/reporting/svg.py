"""What pictures are drawn with: SVG as text, so that nothing needs to be installed for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

#: Of Okabe and Ito's palette, which the colour-blind can tell apart.
BLUE, GREEN, ORANGE, RED, GREY = "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#999999"


@dataclass(frozen=True)
class Axis:
    """From ``low`` at pixel ``start`` to ``high`` at pixel ``end``; both above zero where it is ``logarithmic``."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = True

    def __call__(self, value: float) -> float:
        """The pixel of a value; values beyond the ends are at the ends."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values between the ends, some five to ten."""
        if not self.logarithmic:
            step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
            step *= next(k for k in (1, 2, 5, 10) if (self.high - self.low) / (k * step) <= 10)
            first = math.ceil(self.low / step)
            return [i * step for i in range(first, math.floor(self.high / step) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if len(decades) <= 4 else (1,)
        return [t for d in decades for f in factors if self.low <= (t := f * 10.0**d) <= self.high]


def page(width: float, height: float, parts: Sequence[str]) -> str:
    """The whole picture."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, content: str, anchor: str = "start", size: float = 11) -> str:
    """``anchor``: ``start``, ``middle`` or ``end``."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}">{escape(content)}</text>'


def line(x0: float, y0: float, x1: float, y1: float, colour: str, width: float = 1, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="{colour}" stroke-width="{width:g}" fill="none"{dashes}/>'


def bar(x: float, y: float, width: float, height: float, colour: str, hint: str = "") -> str:
    """``hint``: shown where the pointer rests on it."""
    title = f"<title>{escape(hint)}</title>" if hint else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}">{title}</rect>'


def dot(x: float, y: float, colour: str, filled: bool, hint: str = "") -> str:
    title = f"<title>{escape(hint)}</title>" if hint else ""
    fill = colour if filled else "white"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}" stroke-width="1.5">{title}</circle>'
    )


def legend(x: float, y: float, entries: Sequence[tuple[str, str]]) -> list[str]:
    """Squares of colours with what they stand for, in a row."""
    parts = []
    for colour, label in entries:
        parts += [bar(x, y - 9, 10, 10, colour), text(x + 14, y, label)]
        x += 34 + 6.2 * len(label)
    return parts
