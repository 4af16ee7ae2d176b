"""A model captured once by Dynamo and AOTAutograd, and compiled from there by any options: what the trials of a planner share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch.fx import GraphModule

from effc.apart import compiled_by
from effc.compiler.build import BuildReport, Built, lowered
from effc.compiler.capture import backend
from effc.compiler.capture.devices import Build
from effc.compiler.capture.graph import GraphCompiler
from effc.compiler.capture.layers import Layer, Layers, copied
from effc.compiler.capture.owner import owned_names, owner_of
from effc.compiler.capture.parameters import statics_of
from effc.compiler.capture.planned import code_options
from effc.compiler.capture.recording import Recording, record
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.compress.by_plan import as_made
from effc.compiler.compress.compressor import Compressed, Step
from effc.compiler.compress.forms import steps_of
from effc.compiler.compress.sites import WeightSite, find_sites
from effc.compiler.ir.options import Options
from effc.compiler.ir.program import Program
from effc.compiler.toolchain import toolchain
from effc.planning.excerpt import excerpt
from effc.runtime.artifact import Artifact
from effc.runtime.executable import Executable

Builder = Callable[[Options], Build]


@dataclass(frozen=True)
class Asked:
    """What is to be lowered: the model by ``options``; with ``compressed``, what `Captured.compressed` has made by them, not making that
    again; of the kernels those alone that are near the weights ``around``, and some more.
    """

    options: Options
    compressed: Sequence[Compressed] = ()
    around: Collection[str] | None = None

    @property
    def steps(self) -> Sequence[Step]:
        """What graphs go through."""
        return as_made(self.compressed) if self.compressed else steps_of(self.options)


@dataclass(frozen=True, eq=False)
class _Graph:
    """An ATen graph as AOTAutograd gave it, run by ``layer``."""

    gm: GraphModule
    kind: str
    inputs: Sequence[Any]
    layer: Layer

    def compiler(self, options: Options, build: Build, steps: Sequence[Step] | None = None) -> GraphCompiler:
        """By the steps that ``options`` say, or by others."""
        chosen = steps_of(options) if steps is None else steps
        return GraphCompiler(self.layer.names, options, build, self.layer.weights, chosen)

    @cached_property
    def sites(self) -> list[tuple[WeightSite, torch.Tensor]]:
        """The weights that can have other forms."""
        statics = {n: s for n, s in statics_of(self.gm.graph, self.layer.names).items() if not s.attributes}
        found, _ = find_sites({node: s.name for node, s in statics.items()})
        return [(site, self.layer.weights[statics[site.param].position]) for site in found]

    @cached_property
    def masks(self) -> bool:
        """Whether some weights are products of parameters."""
        known = statics_of(self.gm.graph, self.layer.names).keys()
        return any(len(read := {*node.all_input_nodes}) > 1 and read <= known for node in self.gm.graph.nodes)

    def part(self, weights: Collection[str]) -> GraphModule | None:
        """What is around these, as far as it holds some; all of it where weights are products, whose names are not those of parameters."""
        nodes = {use.node for site, _ in self.sites if site.name in weights for use in site.uses}
        if self.masks:
            return copied(self.gm)
        return excerpt(self.gm, nodes) if nodes else None


class Captured:
    """``model``, called by one thread at a time. A graph that a call meets for the first time (after a graph break, or of other sizes) is
    captured then, whatever options the call runs by.
    """

    def __init__(self, model: object) -> None:
        self._graphs: list[_Graph] = []
        self._lock = threading.Lock()  # of whoever rewrites graphs: they share their fake tensors
        self._functions: dict[int, Callable[[list[Any]], Any]] = {}  # of the options that a call runs by
        self._compile: Callable[[_Graph], Callable[[list[Any]], Any]]
        self._owner = owner_of(model)
        self._call = compiled_by(model, self._capture)

    def compiled(self, options: Options, builder: Builder) -> Callable[..., Any]:
        """The model by ``options``, each graph compiled at its first call; ``builder(options)`` makes executables of regions."""
        functions: dict[int, Callable[[list[Any]], Any]] = {}

        def compile_graph(graph: _Graph) -> Callable[[list[Any]], Any]:
            return graph.compiler(options, builder(options)).compile(copied(graph.gm), graph.kind, graph.inputs)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._functions, self._compile = functions, compile_graph
            return self._call(*args, **kwargs)

        return call

    def lowered(self, asked: Asked) -> Recording:
        """What compiling all graphs would record: their programs, without code. Threads may call this at once: while one waits for the
        toolchain, another rewrites graphs.
        """
        with torch.no_grad(), record() as recording, self._lock:
            for graph in self._graphs:
                part = copied(graph.gm) if asked.around is None else graph.part(asked.around)
                if part is not None:
                    compiler = graph.compiler(asked.options, self._lowering(asked.options), asked.steps)
                    compiler.assembled(part, graph.kind, graph.inputs)
        return recording

    def compressed(self, options: Options) -> list[Compressed]:
        """What ``options`` make of the weights of all graphs, where they make something."""
        with torch.no_grad(), self._lock:
            of_graphs = (
                g.compiler(options, self._lowering(options)).compressed(copied(g.gm), g.kind) for g in self._graphs
            )
            return [found for found in of_graphs if found is not None]

    def sites(self) -> dict[str, tuple[WeightSite, torch.Tensor]]:
        """The weights of all graphs that can have other forms, by name."""
        found: dict[str, tuple[WeightSite, torch.Tensor]] = {}
        for graph in self._graphs:
            for site, weight in graph.sites:
                found.setdefault(site.name, (site, weight))
        return found

    def _lowering(self, options: Options) -> Build:
        code, target = code_options(options), Target.host().name

        def make(text: str) -> Built:
            self._lock.release()
            try:
                program = lowered(text, code, target, toolchain())
            finally:
                self._lock.acquire()
            return Built(cast(Executable, _Lowered(program)), Artifact(program, (), b""), BuildReport())

        return make

    def _capture(self, gm: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        if not backend.native():
            return backend.in_eager(gm)
        names, shared = owned_names(gm, example_inputs, self._owner)

        def keep(graph: GraphModule, kind: str, inputs: Sequence[Any]) -> Callable[..., Any]:
            kept, first = copied(graph), Layer(names, example_inputs)

            def of(layer: Layer) -> Callable[[list[Any]], Any]:
                return self._keep(_Graph(kept, kind, inputs, layer))

            return of(first) if shared is None else Layers(kept.graph, first, shared, of)

        return backend.through_aot(gm, example_inputs, keep)

    def _keep(self, graph: _Graph) -> Callable[[list[Any]], Any]:
        """The function of a graph, by the options that a call runs by."""
        number = len(self._graphs)
        self._graphs.append(graph)

        def run(arguments: list[Any]) -> Any:
            if number not in self._functions:
                self._functions[number] = self._compile(self._graphs[number])
            return self._functions[number](arguments)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run


class _Lowered:
    """In an executable's place, where nothing is run."""

    def __init__(self, program: Program) -> None:
        self.program, self.notes = program, list[str]()
