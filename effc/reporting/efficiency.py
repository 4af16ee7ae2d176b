"""How far models are from the time that their arithmetic alone would take: ideal latency, computational efficiency, efficiency gap.

The definitions are those of Lavin, "On the Efficiency of Convolutional Neural Networks", arXiv 2404.03617 (2024)::

    ideal latency               n / R     n operations of the model, R the machine's peak
    computational efficiency    C = ideal latency / actual latency,    so that    actual latency = n / (R * C)

A model is fast by few operations or by high efficiency. An efficiency gap plot shows both: ideal and actual latency of models on a
logarithmic axis, against their accuracy; the distance of the two is log C. Ours: n are the operations of contractions, a multiply-add
counted as two, and where a model computes in several dtypes n / R is the sum over them, each with its peak (what ATen runs counts as
float32). A convolution by Winograd's method does fewer operations than are counted, so C may exceed 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from effc.compiler.ir.errors import InputError
from effc.reporting.bounds import Roof
from effc.reporting.efficiency_plot import svg
from effc.reporting.report import Report
from effc.roof import host_roof


@dataclass(frozen=True)
class Efficiency:
    """Of a model. ``flops``: n; ``ideal``, ``actual``: seconds a call, the latter measured; ``accuracy``: in whatever unit, or None."""

    name: str
    flops: int
    ideal: float
    actual: float
    accuracy: float | None = None

    @property
    def computational(self) -> float:
        """C, the share of the peak."""
        return self.ideal / self.actual


@dataclass(frozen=True)
class EfficiencyGap:
    """``models``: in the order in which they were given; ``measure``: what their accuracy is. ``str`` is a table."""

    models: tuple[Efficiency, ...]
    measure: str

    def to_svg(self, path: str | PathLike[str]) -> None:
        """Write the plot: ideal (hollow) and actual latency from left to right, against accuracy where all models have one, else one below
        the other.
        """
        Path(path).write_text(svg(self.models, self.measure), encoding="utf-8")

    def __str__(self) -> str:
        width = max(len(m.name) for m in self.models)
        lines = [f"{'model':<{width}} {'GFLOP':>8} {'ideal, ms':>10} {'actual, ms':>10} {'efficiency':>10}"]
        for m in self.models:
            accuracy = "" if m.accuracy is None else f"  {self.measure} {m.accuracy:g}"
            lines.append(
                f"{m.name:<{width}} {m.flops / 1e9:8.3g} {1e3 * m.ideal:10.3g} {1e3 * m.actual:10.3g} {m.computational:10.1%}{accuracy}"
            )
        return "\n".join(lines)


def efficiency_gap(
    reports: Mapping[str, Report],
    accuracy: Mapping[str, float] | None = None,
    *,
    measure: str = "accuracy",
    roof: Roof | None = None,
) -> EfficiencyGap:
    """The efficiency gap of models, each by its report, which ``effc.explain(..., rounds=N)`` made: see the module's docstring.

    ``accuracy``: of each, by the same names; ``measure``: what it is. ``roof``: of the machine, by default this one, measured on
    ``torch.get_num_threads()`` threads. InputError: no reports, one without a measured latency, or an accuracy that is missing.
    """
    if not reports:
        raise InputError("an efficiency gap of no models: give a report for each")
    for name, report in reports.items():
        if report.latency is None:
            raise InputError(
                f"the report of {name!r} has no measured latency: make it with effc.explain(..., rounds=20)"
            )
    if accuracy is not None and set(accuracy) != set(reports):
        odd = ", ".join(repr(n) for n in sorted(set(accuracy) ^ set(reports)))
        raise InputError(f"accuracy and reports name different models: {odd}")
    peak = (roof or host_roof(torch.get_num_threads())).peak
    return EfficiencyGap(
        tuple(_efficiency(name, r, peak, accuracy[name] if accuracy else None) for name, r in reports.items()), measure
    )


def _efficiency(name: str, report: Report, peak: float, accuracy: float | None) -> Efficiency:
    assert report.latency is not None, "checked by efficiency_gap"
    aten = report.flops[1]
    flops = sum(layer.flops for layer in report.layers) + aten
    ideal = (sum(layer.flops / layer.rate for layer in report.layers) + aten) / peak
    return Efficiency(name, flops, ideal, report.latency, accuracy)
