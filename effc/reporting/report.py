"""``Report``: what effc did with a model, as text, JSON or a page of HTML."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from effc.compiler.capture.recording import Fallback, GraphFacts, Recording
from effc.compiler.ir.plan import Plan
from effc.compiler.ir.site import sites_of
from effc.costmodel.hardware import flags
from effc.costmodel.traffic import Layer, layers_of
from effc.reporting.bounds import Roof
from effc.reporting.decided import HEAD, DecisionFacts, decisions_of, plan_data
from effc.reporting.waterline import Waterline, analyze

_SHOWN = 20  # kernels and fallbacks listed by str(); JSON and HTML hold all


@dataclass(frozen=True)
class Measured:
    """Seconds: ``latency`` of a whole call, ``kernels`` of each kernel call in the order of compilation; None for one that did not run."""

    latency: float
    kernels: tuple[float | None, ...]


@dataclass(frozen=True)
class Report:
    """``graphs`` in the order of compilation; ``seconds``: the whole first call, each graph's ``phases`` included.

    ``plan``: by which the model was compiled, or None; ``decisions``: of it, at the sites that are here, the slowest first. ``layers``:
    all kernel calls in order, with what they compute and move. ``latency``: seconds of a whole call, the median of those that were
    measured, or None.
    """

    graphs: tuple[GraphFacts, ...]
    notes: tuple[str, ...]
    seconds: float
    decisions: tuple[DecisionFacts, ...] = ()
    layers: tuple[Layer, ...] = ()
    latency: float | None = None
    plan: Plan | None = None

    @staticmethod
    def of(recording: Recording, seconds: float, measured: Measured | None = None) -> Report:
        """``measured``: times of calls after the first."""
        notes = tuple(dict.fromkeys(recording.notes))
        layers = layers_of(recording.programs, flags())
        if measured is not None:
            layers = tuple(replace(layer, seconds=s) for layer, s in zip(layers, measured.kernels, strict=True))
        latency = measured.latency if measured is not None else None
        decisions = decisions_of(recording.plan, sites_of(recording.programs), [layer.seconds for layer in layers])
        return Report(tuple(recording.graphs), notes, seconds, decisions, layers, latency, recording.plan)

    @property
    def ops(self) -> tuple[int, int]:
        """How many ops effc compiled, and how many ATen runs."""
        return sum(g.ops_compiled for g in self.graphs), sum(len(g.fallbacks) for g in self.graphs)

    @property
    def flops(self) -> tuple[int, int]:
        """Arithmetic of contractions, by torch's flop counter: compiled, and run by ATen."""
        return sum(g.flops_compiled for g in self.graphs), sum(g.flops_aten for g in self.graphs)

    @property
    def fallbacks(self) -> list[tuple[Fallback, int]]:
        """Each different fallback with how often it occurs, the most frequent first."""
        return Counter(f for g in self.graphs for f in g.fallbacks).most_common()

    @property
    def phases(self) -> dict[str, float]:
        """Seconds that effc spent, by phase, over all graphs."""
        total: dict[str, float] = {}
        for graph in self.graphs:
            for name, seconds in graph.phases.items():
                total[name] = total.get(name, 0.0) + seconds
        return total

    def waterline(self, roof: Roof | None = None, blocks: Sequence[tuple[int, int]] | None = None) -> Waterline:
        """Which of ``layers`` are bound by memory, and what fusing ``blocks`` of them can gain: see `effc.reporting.waterline`.

        ``roof``: of the machine, by default this one, measured on ``torch.get_num_threads()`` threads (half a second, once). ``blocks``: of
        each the first layer and the one after its last; by default blocks with a shortcut. What ATen runs is left out. InputError:
        blocks that overlap, or reach beyond the layers.
        """
        if roof is None:
            import torch

            from effc.roof import host_roof

            roof = host_roof(torch.get_num_threads())
        return analyze(self.layers, roof, blocks)

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """All facts as JSON text, also written to ``path`` where that is given."""
        text = json.dumps(self._data(), indent=1)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write one self-contained page."""
        Path(path).write_text(self._page(), encoding="utf-8")

    def __str__(self) -> str:
        lines = self._summary()
        for number, graph in enumerate(self.graphs):
            lines.append(f"graph {number} ({graph.kind}):")
            for region in graph.regions:
                lines.append(
                    f"  {region.name}: {_number(region.ops, 'op')} in {_number(len(region.kernels), 'kernel')}, "
                    f"{_count(region.flops)}FLOP"
                )
                lines += [
                    f"    {k.name:<40} {k.template:<12} {_count(k.flops):>9}FLOP  {k.location}"
                    for k in region.kernels[:_SHOWN]
                ]
                lines += _rest(len(region.kernels), "kernels", "    ")
        if self.decisions:
            lines.append("decisions of the plan:")
            lines += [f"  {line}" for d in self.decisions[:_SHOWN] for line in d.lines()]
            lines += _rest(len(self.decisions), "decisions", "  ")
        if self.fallbacks:
            lines.append("run by ATen:")
            lines += [f"  {n:>4} x {f.op} at {f.source}: {f.reason}" for f, n in self.fallbacks[:_SHOWN]]
            lines += _rest(len(self.fallbacks), "kinds", "  ")
        lines += [f"note: {n}" for n in self.notes]
        return "\n".join(lines)

    def _summary(self) -> list[str]:
        (ours, aten), (flops, flops_aten) = self.ops, self.flops
        phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.phases.items())
        kinds = Counter(g.kind for g in self.graphs)
        regions = sum(len(g.regions) for g in self.graphs)
        lines = [
            f"{_number(len(self.graphs), 'graph')}{_bracketed(kinds)}, {_number(regions, 'region')}",
            f"ops:  {ours} compiled, {aten} run by ATen ({_share(ours, aten)})",
            f"FLOP: {_count(flops).strip()} compiled, {_count(flops_aten).strip()} run by ATen ({_share(flops, flops_aten)})",
            f"first call {self.seconds:.2f} s, of which effc: {phases or 'nothing'}",
        ]
        if not self.graphs:
            lines.append("Dynamo captured nothing of this model (TORCH_LOGS=graph_breaks says why): it ran in eager")
        if self.latency is not None:
            lines.append(f"a call takes {1e3 * self.latency:.3g} ms")
        if self.plan is not None:
            lines += self.plan.summary()
        if kinds["forward"]:
            lines.append("traced for gradients: under torch.no_grad() nothing is kept for a backward, which is faster")
        return lines

    def _data(self) -> dict[str, Any]:
        (ours, aten), (flops, flops_aten) = self.ops, self.flops
        return {
            "ops": {"compiled": ours, "aten": aten},
            "flops": {"compiled": flops, "aten": flops_aten},
            "seconds": self.seconds,
            "phases": self.phases,
            "latency": self.latency,
            "layers": [_layer_data(layer) for layer in self.layers],
            "notes": list(self.notes),
            "plan": plan_data(self.plan) if self.plan is not None else None,
            "decisions": [d.data() for d in self.decisions],
            "graphs": [asdict(g) for g in self.graphs],
        }

    def _page(self) -> str:
        kernels = [
            (number, region.name, k.name, k.template, f"{k.flops:,}", k.location)
            for number, graph in enumerate(self.graphs)
            for region in graph.regions
            for k in region.kernels
        ]
        fallbacks = [(n, f.op, f.source.describe(), f.reason, f"{f.flops:,}") for f, n in self.fallbacks]
        head = "".join(f"<th>{h}</th>" for h in HEAD)
        decisions = f"<table><tr>{head}</tr>{''.join(d.rows() for d in self.decisions)}</table>"
        summary = "".join(f"<p>{html.escape(line)}</p>" for line in [*self._summary(), *self.notes])
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>effc report</title><style>'
            "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}"
            "td,th{border:1px solid #ccc;padding:3px 8px;text-align:left}p{margin:.2em 0}</style>"
            f"<h1>effc report</h1>{summary}"
            f"<h2>Kernels</h2>{_table(('graph', 'region', 'kernel', 'template', 'FLOP', 'line'), kernels)}"
            f"<h2>Decisions</h2>{decisions if self.decisions else '<p>no plan</p>'}"
            f"<h2>Run by ATen</h2>{_table(('times', 'op', 'line', 'reason', 'FLOP'), fallbacks)}</html>\n"
        )


def _layer_data(layer: Layer) -> dict[str, Any]:
    """``bytes``: each element that the kernel reads or writes once."""
    return {
        "name": layer.name,
        "location": layer.location,
        "flops": layer.flops,
        "operations": layer.operations,
        "bytes": sum(t.read + t.written for t in layer.touches),
        "scratch": layer.scratch,
        "seconds": layer.seconds,
    }


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    if not rows:
        return "<p>none</p>"
    lines = ["".join(f"<th>{h}</th>" for h in head)]
    lines += ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _rest(total: int, what: str, indent: str) -> list[str]:
    return [f"{indent}and {total - _SHOWN} more {what}"] if total > _SHOWN else []


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _bracketed(kinds: Counter[str]) -> str:
    return f" ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})" if kinds else ""


def _share(part: int, rest: int) -> str:
    return f"{100 * part / (part + rest):.1f} % compiled" if part + rest else "none at all"


def _count(value: int) -> str:
    """``1234567`` -> ``1.23 M``."""
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} "
