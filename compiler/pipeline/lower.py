"""The pipeline: graph IR text → ``Program``. Everything that happens to a region, in order, on one screen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch_mlir import ir

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.targets import AnyTarget, target_of
from effc.compiler.ir.dialect import new_context, verify
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.pass_text import parse_pipeline
from effc.compiler.ir.passes import Instrument, PassManager
from effc.compiler.ir.program import Program
from effc.compiler.ir.spec import Schedule
from effc.compiler.pipeline.assemble import Assembler
from effc.compiler.pipeline.borders import absorb_borders
from effc.compiler.pipeline.dump import RegionDump
from effc.compiler.pipeline.factors import materialize_factors
from effc.compiler.pipeline.fusion import fuse
from effc.compiler.pipeline.graph import Graph, Tensor
from effc.compiler.pipeline.integers.contractions import contract_integers
from effc.compiler.pipeline.integers.gathers import gather_codes
from effc.compiler.pipeline.integers.moves import move_codes
from effc.compiler.pipeline.merging import merge_contractions
from effc.compiler.pipeline.placed import Kernel
from effc.compiler.pipeline.placement import Base, Layout, place
from effc.compiler.pipeline.prepare import cut, split_prepared
from effc.compiler.pipeline.read import read_graph
from effc.compiler.pipeline.rotations import split_rotations
from effc.compiler.pipeline.steps import order_steps
from effc.compiler.pipeline.widening import sink_widenings
from effc.passes import registry

#: Passes over the graph IR, before kernels are formed, as ``effc-opt -p`` takes them.
GRAPH_PASSES = "mlir:func.func(cse)"


def lower(text: str, options: Mapping[str, Any]) -> Program:
    """Compile graph IR ``text`` to a program for ``options["target"]`` (`target_of`): a CPU (default: the host), or a GPU.

    ``options["pairs"]`` (default: true): whether two products may be one kernel on a GPU. ``options["schedules"]``: a plan's schedules,
    ``{KernelSpec.key(): {parameter: value}}``; other kernels choose their own.
    LoweringError says which op of the region cannot be compiled, and where in the user's model it stands.
    """
    target, pairs = target_of(options.get("target", "host")), options.get("pairs", True)
    schedules = {key: Schedule(tuple(sorted(s.items()))) for key, s in options.get("schedules", {}).items()}
    dump = RegionDump.of(text)
    with dump.reproduced(text, f"--emit kernels --target {target.name}"):
        graph, notes = _read(text, dump.instruments())
        prepared_graph, prepared = split_prepared(graph)
        # Before the cut, by which tensors that are prepared become inputs.
        prepare = _program(prepared_graph, [], None, target, schedules, pairs) if prepared_graph is not None else None
        program = _program(_without(graph, prepared), prepared, prepare, target, schedules, pairs)
    program = replace(program, notes=notes)
    dump.program(program)
    return program


def kernels_of(text: str, target: Target) -> tuple[list[Kernel], Collection[Base]]:
    """The kernels of graph IR ``text`` before any become one, without those that prepare weights; and the bases that no call changes."""
    graph, _ = _read(text)
    graph = _without(graph, split_prepared(graph)[1])
    return _kernels(graph, target)[1], {Base("input", i) for i in graph.constants()}


def _read(text: str, instruments: tuple[Instrument, ...] = ()) -> tuple[Graph, tuple[str, ...]]:
    """The graph after the rewrites that concern all of it, and notes for the report."""
    graph = read_graph(rewrite(text, instruments))
    gather_codes(graph)
    move_codes(graph)
    notes = contract_integers(graph)
    sink_widenings(graph)
    return graph, notes


def _without(graph: Graph, prepared: list[Tensor]) -> Graph:
    """What runs in each call: ``graph`` reads what is ``prepared``; after the rewrites that concern this alone."""
    graph = cut(graph, prepared)
    merge_contractions(graph)
    split_rotations(graph)
    return graph


def rewrite(text: str, instruments: tuple[Instrument, ...] = ()) -> ir.Module:
    """Parse, verify, and run the passes over the graph IR."""
    with new_context():
        try:
            module = ir.Module.parse(text)
        except ir.MLIRError as error:
            raise LoweringError(f"the graph IR does not parse: {error}") from error
        problems = verify(module)
        if problems:
            raise LoweringError("; ".join(problems))
        PassManager(parse_pipeline(GRAPH_PASSES, registry()), instruments).run(module)
        return module


def _program(
    graph: Graph,
    prepared: Sequence[Tensor],
    prepare: Program | None,
    target: AnyTarget,
    schedules: Mapping[str, Schedule],
    pairs: bool,
) -> Program:
    layout, kernels = _kernels(graph, target)
    return Assembler(graph, layout, kernels, len(prepared), prepare, target, schedules, pairs).run()


def _kernels(graph: Graph, target: AnyTarget) -> tuple[Layout, list[Kernel]]:
    absorb_borders(graph)
    fusion = fuse(graph)
    layout = place(graph, fusion)
    if isinstance(target, Target):  # a GPU's kernels read any factor where it lies
        materialize_factors(graph, fusion, layout, target)
    return layout, [step.build() for step in order_steps(graph, fusion, layout)]
