"""A model captured once by Dynamo and AOTAutograd, and compiled from there by any options: what the trials of a planner share."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.fx import GraphModule

from effc.apart import compiled_by
from effc.compiler.build import BuildReport, Built, lowered
from effc.compiler.capture import backend
from effc.compiler.capture.devices import Build
from effc.compiler.capture.graph import GraphCompiler
from effc.compiler.capture.parameters import static_names
from effc.compiler.capture.planned import code_options
from effc.compiler.capture.recording import Recording, record
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.compress.compressor import Compressed
from effc.compiler.compress.forms import steps_of
from effc.compiler.ir.options import Options
from effc.compiler.ir.program import Program
from effc.compiler.toolchain import toolchain
from effc.runtime.artifact import Artifact
from effc.runtime.executable import Executable

Builder = Callable[[Options], Build]


@dataclass(frozen=True, eq=False)
class _Graph:
    """An ATen graph as AOTAutograd gave it. ``names``, ``weights``: see `GraphCompiler`."""

    gm: GraphModule
    kind: str
    inputs: Sequence[Any]
    names: dict[int, str]
    weights: Sequence[Any]

    def compiler(self, options: Options, build: Build) -> GraphCompiler:
        return GraphCompiler(self.names, options, build, self.weights, steps_of(options))

    def copied(self) -> GraphModule:
        """Which a compiler may change."""
        return GraphModule(self.gm, copy.deepcopy(self.gm.graph))


class Captured:
    """``model``, called by one thread at a time. A graph that a call meets for the first time (after a graph break, or of other sizes) is
    captured then, whatever options the call runs by.
    """

    def __init__(self, model: object) -> None:
        self._graphs: list[_Graph] = []
        self._lock = threading.Lock()  # of whoever rewrites graphs: they share their fake tensors
        self._functions: dict[int, Callable[[list[Any]], Any]] = {}  # of the options that a call runs by
        self._compile: Callable[[_Graph], Callable[[list[Any]], Any]]
        self._call = compiled_by(model, self._capture)

    def compiled(self, options: Options, builder: Builder) -> Callable[..., Any]:
        """The model by ``options``, each graph compiled at its first call; ``builder(options)`` makes executables of regions."""
        functions: dict[int, Callable[[list[Any]], Any]] = {}

        def compile_graph(graph: _Graph) -> Callable[[list[Any]], Any]:
            return graph.compiler(options, builder(options)).compile(graph.copied(), graph.kind, graph.inputs)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._functions, self._compile = functions, compile_graph
            return self._call(*args, **kwargs)

        return call

    def lowered(self, options: Options) -> Recording:
        """What compiling all graphs by ``options`` would record: their programs, without code. Threads may call this at once: while one
        waits for the toolchain, another rewrites graphs.
        """
        with torch.no_grad(), record() as recording, self._lock:
            for graph in self._graphs:
                graph.compiler(options, self._lowering(options)).assembled(graph.copied(), graph.kind, graph.inputs)
        return recording

    def compressed(self, options: Options) -> list[Compressed]:
        """What ``options`` make of the weights of all graphs, where they make something."""
        with torch.no_grad(), self._lock:
            of_graphs = (
                g.compiler(options, self._lowering(options)).compressed(g.copied(), g.kind) for g in self._graphs
            )
            return [found for found in of_graphs if found is not None]

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
        names = static_names(gm)

        def keep(graph: GraphModule, kind: str, inputs: Sequence[Any]) -> Callable[..., Any]:
            number = len(self._graphs)
            kept = GraphModule(graph, copy.deepcopy(graph.graph))
            self._graphs.append(_Graph(kept, kind, inputs, names, example_inputs))

            def run(arguments: list[Any]) -> Any:
                if number not in self._functions:
                    self._functions[number] = self._compile(self._graphs[number])
                return self._functions[number](arguments)

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        return backend.through_aot(gm, example_inputs, keep)


class _Lowered:
    """In an executable's place, where nothing is run."""

    def __init__(self, program: Program) -> None:
        self.program, self.notes = program, list[str]()
