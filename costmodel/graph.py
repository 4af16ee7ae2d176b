"""Features of a program's dataflow: which kernel call reads what another wrote, and what that says of regions and whole graphs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from effc.compiler.ir.program import Program
from effc.compiler.ir.spec import ITEM_SIZE
from effc.costmodel.features.scale import share

COLUMNS = (
    *("log_calls", "log_edges", "depth", "width", "parallelism"),
    *("critical_share", "largest_share"),
    *("fan_in_mean", "fan_in_max", "fan_out_mean", "fan_out_max"),
    *("sources", "sinks"),
)


@dataclass
class _Written:
    """Bytes ``start`` to ``stop`` of a base, last written by a call."""

    start: int
    stop: int
    call: int


def dataflow(program: Program, values: Mapping[str, int]) -> nx.DiGraph:
    """A node a call, with ``name`` and ``template``; an edge to each call that reads what it wrote. Memory that the arena uses again
    belongs to its last writer. ``values``: of the program's symbols.
    """
    graph = nx.DiGraph()
    memory: dict[tuple[str, int], list[_Written]] = {}
    for number, call in enumerate(program.calls):
        spec = program.kernels[call.kernel]
        graph.add_node(number, name=call.name, template=spec.template)
        known = {s: v.evaluate(values) for s, v in zip(spec.symbols, call.symbols, strict=True)}
        writes: list[tuple[tuple[str, int], int, int]] = []
        for operand, pointer in zip(spec.operands, call.pointers, strict=True):
            start = pointer.offset.evaluate(values)
            stop = start + operand.size.evaluate(known) * ITEM_SIZE[operand.dtype]
            place = (pointer.base, pointer.index)
            if operand.role in ("read", "readwrite", "packed"):
                held = memory.get(place, ())
                graph.add_edges_from((w.call, number) for w in held if w.start < stop and start < w.stop)
            if operand.role in ("write", "readwrite"):
                writes.append((place, start, stop))
        for place, start, stop in writes:
            memory[place] = [*_outside(memory.get(place, ()), start, stop), _Written(start, stop, number)]
    return graph


def row(graph: nx.DiGraph, seconds: Sequence[float]) -> list[float]:
    """In the order of `COLUMNS`; ``seconds``: predicted, of each call. ``width``: calls of the fullest level; ``critical_share``: of the
    time, what the slowest chain of dependent calls takes; ``parallelism``: calls over depth.
    """
    if not graph:
        return [0.0] * len(COLUMNS)
    level: dict[int, int] = {}
    finish: dict[int, float] = {}
    for node in nx.topological_sort(graph):
        before = list(graph.predecessors(node))
        level[node] = 1 + max((level[p] for p in before), default=0)
        finish[node] = seconds[node] + max((finish[p] for p in before), default=0.0)
    depth = max(level.values())
    width = max(list(level.values()).count(n) for n in range(1, depth + 1))
    into = [degree for _, degree in graph.in_degree()]
    out = [degree for _, degree in graph.out_degree()]
    calls = len(graph)
    return [
        math.log2(1 + calls),
        math.log2(1 + graph.number_of_edges()),
        float(depth),
        float(width),
        calls / depth,
        share(max(finish.values()), sum(seconds)),
        share(max(seconds), sum(seconds)),
        sum(into) / calls,
        float(max(into)),
        sum(out) / calls,
        float(max(out)),
        float(into.count(0)),
        float(out.count(0)),
    ]


def _outside(written: Sequence[_Written], start: int, stop: int) -> list[_Written]:
    """What is left of older writes, when these bytes are written."""
    kept = []
    for old in written:
        if old.start < min(old.stop, start):
            kept.append(_Written(old.start, min(old.stop, start), old.call))
        if max(old.start, stop) < old.stop:
            kept.append(_Written(max(old.start, stop), old.stop, old.call))
    return kept
