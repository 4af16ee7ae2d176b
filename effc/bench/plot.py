"""A report as a picture: an SVG of bars, written by hand so that nothing needs to be installed for it."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from effc.bench.result import Report
from effc.bench.spread import Spread

#: Okabe and Ito's palette, which the colour-blind can tell apart.
_COLOURS = ("#999999", "#56b4e9", "#0072b2", "#e69f00", "#cc79a7", "#f0e442", "#009e73")
_LEFT, _RIGHT, _TOP = 240, 900, 70
_BAR, _GAP = 11, 12


def write(report: Report, path: Path) -> None:
    """How many times faster than eager each system is on each subject, with the 20th to 80th percentile as a whisker."""
    path.write_text(svg(report))


def svg(report: Report) -> str:
    """The picture as text; the axis is logarithmic, with eager at 1."""
    systems = [s for s in report.settings["systems"] if s != "eager"]
    rows = [
        (m.name, [(s, ratio) for s in systems if (ratio := m.speedup(s, "eager")) is not None])
        for m in report.measurements
    ]
    ends = [e for _, bars in rows for _, r in bars for e in (r.low, r.high)]
    low, high = min([0.8, *ends]) * 0.95, max([1.25, *ends]) * 1.05

    def x(ratio: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * math.log(ratio / low) / math.log(high / low)

    colours = {s: _COLOURS[1 + i % (len(_COLOURS) - 1)] for i, s in enumerate(systems)}
    colours |= {"effc": _COLOURS[-1]}
    parts, y = [], _TOP
    for name, bars in rows:
        middle = y + max(1, len(bars)) * _BAR / 2 + 4
        parts.append(f'<text x="{_LEFT - 8}" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>')
        for system, ratio in bars:
            parts.append(_bar(x(1.0), x(ratio.median), y, colours[system], f"{name}, {system}: {ratio.median:.2f}"))
            parts.append(_whisker(x(ratio.low), x(ratio.high), y))
            parts.append(_number(x(ratio.high), y, ratio))
            y += _BAR
        y += _GAP if bars else _BAR + _GAP
    height = y + 20
    settings = report.settings
    title = f"times faster than eager PyTorch: {settings['threads']} threads, {settings['dtype']}"
    head = [f'<text x="{_LEFT}" y="22" font-size="14">{escape(title)}</text>', *_legend(colours)]
    ticks = [_tick(x(t), t, height - 20) for t in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50) if low <= t <= high]
    body = "\n".join([*head, *ticks, *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_RIGHT + 60} {height}" '
        f'font-family="sans-serif" font-size="11">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _legend(colours: dict[str, str]) -> list[str]:
    parts, x = [], float(_LEFT)
    for system, colour in colours.items():
        parts.append(f'<rect x="{x:.0f}" y="32" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14:.0f}" y="41">{escape(system)}</text>')
        x += 34 + 7 * len(system)
    return parts


def _bar(one: float, end: float, y: float, colour: str, hint: str) -> str:
    left, width = min(one, end), abs(end - one)
    return (
        f'<rect x="{left:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{_BAR - 2}" fill="{colour}">'
        f"<title>{escape(hint)}</title></rect>"
    )


def _whisker(low: float, high: float, y: float) -> str:
    middle = y + (_BAR - 2) / 2
    return f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}" stroke="black" stroke-width="1"/>'


def _number(x: float, y: float, ratio: Spread) -> str:
    return f'<text x="{x + 4:.1f}" y="{y + _BAR - 3:.1f}" font-size="9">{ratio.median:.2f}</text>'


def _tick(x: float, value: float, bottom: float) -> str:
    stroke = "black" if value == 1 else "#dddddd"
    return (
        f'<path d="M{x:.1f} {_TOP - 6}V{bottom:.1f}" stroke="{stroke}"/>'
        f'<text x="{x:.1f}" y="{_TOP - 10}" text-anchor="middle">{value:g}</text>'
    )
