"""An `EfficiencyGap` as a picture: of each model its ideal latency (hollow) and its actual one, and the gap between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from effc.reporting.svg import BLUE, GREY, RED, Axis, dot, line, page, text

_LEFT, _RIGHT, _TOP = 170, 860, 60
_ROW, _PLANE = 34, 320  # pixels: between models by name; of the plane of accuracy


class Drawn(Protocol):
    """What the picture shows of an `Efficiency`."""

    @property
    def name(self) -> str: ...
    @property
    def ideal(self) -> float: ...
    @property
    def actual(self) -> float: ...
    @property
    def accuracy(self) -> float | None: ...
    @property
    def computational(self) -> float: ...


def svg(models: Sequence[Drawn], measure: str) -> str:
    """The picture as text."""
    by_accuracy = all(m.accuracy is not None for m in models)
    bottom = _TOP + (_PLANE if by_accuracy else _ROW * len(models))
    times = [t for m in models for t in (m.ideal, m.actual) if t > 0] or [1e-3]
    x = Axis(1e3 * min(times) / 1.6, 1e3 * max(times) * 1.6, _LEFT, _RIGHT)
    parts = [
        text(_LEFT, 22, "ideal (hollow) and actual latency, ms; their ratio is the computational efficiency", size=14)
    ]
    for tick in x.ticks():
        parts += [line(x(tick), _TOP, x(tick), bottom, "#dddddd"), text(x(tick), bottom + 16, f"{tick:g}", "middle")]
    y = _accuracies(models, bottom) if by_accuracy else None
    if y is not None:
        for tick in y.ticks():
            parts += [
                line(_LEFT, y(tick), _RIGHT, y(tick), "#eeeeee"),
                text(_LEFT - 6, y(tick) + 4, f"{tick:g}", "end"),
            ]
        parts.append(text(_LEFT - 6, _TOP - 10, measure, "end"))
    for number, model in enumerate(models):
        at = _TOP + (number + 0.5) * _ROW if y is None else y(model.accuracy or 0.0)
        parts += _model(model, x, at, named=y is not None)
    return page(_RIGHT + 140, bottom + 30, parts)


def _accuracies(models: Sequence[Drawn], bottom: float) -> Axis:
    values = [m.accuracy for m in models if m.accuracy is not None]
    margin = 0.15 * (max(values) - min(values)) or 0.1 * abs(values[0]) or 1.0
    return Axis(min(values) - margin, max(values) + margin, bottom, _TOP, logarithmic=False)


def _model(model: Drawn, x: Axis, y: float, named: bool) -> list[str]:
    """Its two dots and the gap; a model without operations has no ideal latency. ``named``: beside its dot, instead of the axis."""
    actual, parts = x(1e3 * model.actual), []
    if model.ideal > 0:
        ideal = x(1e3 * model.ideal)
        parts += [line(ideal, y, actual, y, GREY, 1.5), dot(ideal, y, BLUE, False, f"ideal {1e3 * model.ideal:.3g} ms")]
        parts.append(text((ideal + actual) / 2, y - 6, f"{100 * model.computational:.2g}%", "middle", 10))
    parts.append(dot(actual, y, RED, True, f"actual {1e3 * model.actual:.3g} ms"))
    place = (actual + 9, y + 4, model.name) if named else (_LEFT - 8, y + 4, model.name, "end")
    return [*parts, text(*place)]
