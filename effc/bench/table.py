"""A report as text: a table of one line a system and subject, or for kernels one line a subject."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from effc.bench.load import Load
from effc.bench.result import Measurement, Outcome, Report
from effc.bench.spread import Spread
from effc.bench.systems import OURS

_MIB = 1 << 20


def models(report: Report) -> Group:
    """Every system of every model."""
    columns = ("median ms", "20-80 %", "x eager", "roofline", "first call s", "error", "memory MiB", "first MiB")
    table = Table(title=_title(report))
    for name in ("model", "system"):
        table.add_column(name, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for measurement in report.measurements:
        for outcome in measurement.outcomes:
            table.add_row(measurement.name, outcome.system, *_cells(measurement, outcome))
        rival, ratio = measurement.best_rival(), measurement.over_best_rival()
        if rival is not None and ratio is not None:
            table.add_row("", f"{OURS} / {rival.system}", f"{_times(ratio)}")
        table.add_section()
    return Group(table, *_remarks(report))


def kernels(report: Report) -> Group:
    """Ours over eager of every kernel, and the share of the roofline of both; in brackets where the caches hold the data."""
    table = Table(title=_title(report))
    table.add_column("kernel", no_wrap=True)
    for name in (
        "torch ms",
        f"{OURS} ms",
        "times faster (20-80 %)",
        "bound",
        "torch roofline",
        f"{OURS} roofline",
        "error",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for m in report.measurements:
        eager, ours, ratio = m.of("eager"), m.of(OURS), m.speedup(OURS, "eager")
        table.add_row(
            m.name,
            _milliseconds(eager),
            _milliseconds(ours) if ours else next((o.reason for o in m.outcomes if o.system == OURS), "-"),
            _times(ratio) if ratio else "-",
            m.bound,
            *(f"({_percent(o)})" if m.bound == "cache" and o else _percent(o) for o in (eager, ours)),
            f"{ours.error:.1e}" if ours and ours.error is not None else "-",
        )
    return Group(table, *_remarks(report))


def _cells(measurement: Measurement, outcome: Outcome) -> list[str]:
    if outcome.latency is None:
        return [f"{outcome.status}: {outcome.reason}"]
    assert outcome.first_call is not None
    assert outcome.memory is not None
    assert outcome.memory_first is not None
    over_eager = measurement.speedup(outcome.system, "eager")
    return [
        _milliseconds(outcome),
        f"{outcome.latency.low * 1e3:.3g}-{outcome.latency.high * 1e3:.3g}",
        f"{over_eager.median:.2f}" if over_eager else "-",
        _percent(outcome),
        f"{outcome.first_call:.1f}",
        f"{outcome.error:.1e}",
        f"{outcome.memory / _MIB:.0f}",
        f"{outcome.memory_first / _MIB:.0f}",
    ]


def _milliseconds(outcome: Outcome | None) -> str:
    return "-" if outcome is None or outcome.latency is None else f"{outcome.latency.median * 1e3:.4g}"


def _percent(outcome: Outcome | None) -> str:
    return "-" if outcome is None or outcome.share is None else f"{outcome.share:.0%}"


def _times(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _title(report: Report) -> str:
    settings = report.settings
    return f"{settings['threads']} threads, {settings['dtype']}, {settings['rounds']} rounds in turn"


def _remarks(report: Report) -> list[str]:
    lines = []
    if report.measurements:
        peak = Spread.of([m.peak.median for m in report.measurements])
        bandwidth = Spread.of([m.bandwidth.median for m in report.measurements])
        lines.append(f"limits: {peak.median / 1e9:.0f} GFLOP/s, {bandwidth.median / 1e9:.1f} GB/s read")
    mean = report.mean_over_best_rival()
    if mean is not None:
        lines.append(f"{OURS} over the best rival, geometric mean: {mean:.3f}")
    for when, load in (("start", report.load_start), ("end", report.load_end)):
        lines.append(f"load at the {when}: {_load(load)}")
    return lines


def _load(load: Load) -> str:
    busy = ", ".join(f"{name} {share:.0%}" for name, share in load.processes)
    return " ".join(f"{a:.2f}" for a in load.average) + (f"; others at work: {busy}" if busy else "")
