"""Predicted against measured times, drawn: one picture for each way of holding out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from effc.cli.costmodel_tables import TITLES
from effc.reporting import svg

#: Of a point: its family, seconds measured, seconds predicted.
Point = Sequence[str | float]

_COLOURS = (svg.BLUE, svg.GREEN, svg.ORANGE, svg.RED, "#0072b2", "#cc79a7", "#f0e442", svg.GREY)
_SIDE, _MARGIN, _GAP = 360.0, 60.0, 90.0


def drawn(points: Mapping[str, Sequence[Point]]) -> str:
    """The picture, as SVG."""
    families = sorted({str(p[0]) for found in points.values() for p in found})
    colours = {family: _COLOURS[i % len(_COLOURS)] for i, family in enumerate(families)}
    times = [float(t) for found in points.values() for p in found for t in p[1:]]
    low = 10 ** math.floor(math.log10(min(times, default=1e-6)))
    high = 10 ** math.ceil(math.log10(max(times, default=1e-3)))
    parts = svg.legend(_MARGIN, 20, [(colour, family) for family, colour in colours.items()])
    for number, (held, found) in enumerate(points.items()):
        left = _MARGIN + number * (_SIDE + _GAP)
        across = svg.Axis(low, high, left, left + _SIDE)
        up = svg.Axis(low, high, _MARGIN + _SIDE, _MARGIN)
        parts += _frame(across, up, TITLES.get(held, held))
        for family, measured, predicted in found:
            hint = f"{family}: {1e6 * float(measured):.3g} us measured, {1e6 * float(predicted):.3g} us predicted"
            parts.append(svg.dot(across(float(measured)), up(float(predicted)), colours[str(family)], False, hint))
    width = 2 * _MARGIN + len(points) * (_SIDE + _GAP) - _GAP
    return svg.page(width, _SIDE + 2 * _MARGIN, parts)


def _frame(across: svg.Axis, up: svg.Axis, title: str) -> list[str]:
    """Axes, and the lines where both times are equal, and 10 % apart."""
    parts = [svg.text((across.start + across.end) / 2, up.end - 14, title, "middle", 13)]
    for factor in (1 / 1.1, 1.0, 1.1):
        ends = [(across(t), up(factor * t)) for t in (across.low, across.high)]
        parts.append(svg.line(*ends[0], *ends[1], svg.GREY, 1, dashed=factor != 1.0))
    for time in across.ticks():
        label = f"{time:g} s" if time >= 1 else f"{1e3 * time:g} ms" if time >= 1e-3 else f"{1e6 * time:g} us"
        parts += [svg.line(across(time), up.start, across(time), up.start + 4, svg.GREY)]
        parts += [svg.text(across(time), up.start + 16, label, "middle", 9)]
        parts += [svg.text(across.start - 6, up(time) + 3, label, "end", 9)]
    parts.append(svg.text((across.start + across.end) / 2, up.start + 32, "measured", "middle"))
    parts.append(svg.line(across.start, up.start, across.end, up.start, svg.GREY))
    parts.append(svg.line(across.start, up.start, across.start, up.end, svg.GREY))
    return parts
