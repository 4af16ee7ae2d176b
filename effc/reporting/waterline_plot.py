"""A `Waterline` as a picture.

Kernels stand side by side, as wide as the time that each takes at least and as high as its operations a byte. The dashed lines are the
machine's, one for each level of memory: below the line of the level that it reads from, a kernel is under water (blue). A black line is a
block as one kernel; where it lies above the water, fusing lifts the block out. (The analysis is Lavin's, see `waterline`; the drawing
is ours.)
"""

from __future__ import annotations

import math
from typing import Protocol

from effc.reporting.bounds import Roof, Stretch
from effc.reporting.svg import BLUE, GREEN, Axis, bar, legend, line, page, text

_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 900, 64, 380
_THIN = 1.0  # pixels: a kernel is seen however short it is


class Drawn(Protocol):
    """What the picture shows of a `Waterline`."""

    @property
    def roof(self) -> Roof: ...
    @property
    def layers(self) -> tuple[Stretch, ...]: ...
    @property
    def blocks(self) -> tuple[Stretch, ...]: ...
    @property
    def apart(self) -> float: ...
    @property
    def fused(self) -> float: ...
    @property
    def ceiling(self) -> float: ...
    @property
    def measured(self) -> float | None: ...


def svg(water: Drawn, title: str) -> str:
    """The picture as text."""
    y = _height(water)
    total = water.apart or 1.0
    x = Axis(0, total, _LEFT, _RIGHT, logarithmic=False)
    starts = [0.0]
    for layer in water.layers:
        starts.append(starts[-1] + layer.attainable)
    parts = [text(_LEFT, 22, title, size=14), *_legend(water)]
    for tick in y.ticks():
        parts += [line(_LEFT, y(tick), _RIGHT, y(tick), "#eeeeee"), text(_LEFT - 6, y(tick) + 4, f"{tick:g}", "end")]
    for layer, start in zip(water.layers, starts, strict=False):
        top, width = y(layer.intensity), max(_THIN, x(start + layer.attainable) - x(start) - 0.5)
        colour = BLUE if layer.is_under_water else GREEN
        parts.append(bar(x(start), top, width, _BOTTOM - top, colour, _hint(layer)))
    parts += _levels(water, y)
    for block in water.blocks:
        if block.end - block.first > 1:
            height = y(block.intensity)
            parts.append(line(x(starts[block.first]), height, x(starts[block.end]), height, "black", 2.5))
    parts += [line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM, "black"), *_below(x, water)]
    return page(_RIGHT + 120, _BOTTOM + 48, parts)


def _height(water: Drawn) -> Axis:
    """The axis of operations a byte."""
    shown = [s.intensity for s in (*water.layers, *water.blocks) if 0 < s.intensity < math.inf]
    shown += [water.roof.ridge(level) for level in water.roof.levels]
    return Axis(min(shown) / 1.5, max(shown) * 1.5, _BOTTOM, _TOP)


def _levels(water: Drawn, y: Axis) -> list[str]:
    parts = []
    for level in water.roof.levels:
        ridge = water.roof.ridge(level)
        parts.append(line(_LEFT, y(ridge), _RIGHT, y(ridge), "#0072b2", 1.2, dashed=True))
        parts.append(text(_RIGHT + 6, y(ridge) + 4, f"{level.name}, {ridge:.3g}"))
    return parts


def _legend(water: Drawn) -> list[str]:
    entries = [(GREEN, "arithmetic bound"), (BLUE, "under water: memory bound")]
    if any(b.end - b.first > 1 for b in water.blocks):
        entries.append(("black", "a block as one kernel"))
    return legend(_LEFT, 46, entries)


def _below(x: Axis, water: Drawn) -> list[str]:
    """The axis of time, and what it all comes to."""
    parts = []
    for tick in x.ticks() if water.apart else []:
        parts += [
            line(x(tick), _BOTTOM, x(tick), _BOTTOM + 4, "black"),
            text(x(tick), _BOTTOM + 16, _time(tick), "middle"),
        ]
    summary = (
        f"operations a byte of each kernel, over the time it takes at least: {_time(water.apart)} apart, "
        f"{_time(water.fused)} with blocks fused, ceiling {water.ceiling:.2f}"
    )
    if water.measured is not None:
        summary += f"; measured {_time(water.measured)}"
    return [*parts, text(_LEFT, _BOTTOM + 38, summary, size=12)]


def _hint(layer: Stretch) -> str:
    measured = "" if layer.measured is None else f", measured {_time(layer.measured)}"
    return (
        f"{layer.first}: {layer.name} {layer.location}: {layer.operations:.3g} operations, {layer.bytes:.3g} bytes, "
        f"at least {_time(layer.attainable)}{measured}"
    )


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} µs"
