"""Finding the smallest part of a model that effc gets wrong: what ``effc bisect`` does.

The model's ATen graphs, in training those of the backward too, are run with each region checked against ATen; one that fails is
cut down by torch's own graph minifier (delta debugging: Zeller and Hildebrandt, IEEE TSE 28(2), 2002) as long as it goes on failing.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.descriptors import PlainAOTInput
from torch._functorch.fx_minifier import minifier
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from effc.compiler.build import Built
from effc.compiler.capture.backend import builder
from effc.compiler.capture.decompositions import decompositions
from effc.compiler.capture.graph import GraphCompiler
from effc.compiler.ir.errors import LoweringError, OptionError, VerificationError
from effc.compiler.ir.instruments import reproducer
from effc.compiler.ir.options import Options

Inputs = list[torch.Tensor]


@dataclass(frozen=True)
class _Graph:
    """An ATen graph with the tensors that it was called on. ``kind``: ``inference``, ``forward`` or ``backward``."""

    module: GraphModule
    kind: str
    inputs: Inputs


@dataclass(frozen=True)
class Failure:
    """``text``: graph IR of the region at fault. ``reason``: what is wrong with its code or its results."""

    text: str
    reason: str


@dataclass(frozen=True)
class Culprit:
    """The smallest failing graph found; ``nodes`` and ``of``: its number of ops, and that of the graph it was cut from."""

    failure: Failure
    nodes: int
    of: int

    def reproducer(self) -> str:
        """A file for ``effc-opt``, which prints the kernels made of the region, or fails as effc does."""
        return reproducer(self.failure.text, "--emit code", self.failure.reason)


def bisect(
    model: Callable[..., Any],
    inputs: Sequence[Any],
    options: Options,
    tried: Callable[[], None] = lambda: None,
    train: bool = False,
) -> Culprit | None:
    """The smallest failing part of ``model`` on ``inputs``; None where every region is right.

    ``train``: a step of training, which is the graph that saves activations, and the backward of random gradients of the
    results; else without gradients. ``tried`` is called after each attempt. What effc leaves to ATen because it has no lowering
    for it is no failure. OptionError: no module; or ``train``, and no result has a gradient.
    """
    if not isinstance(model, torch.nn.Module):
        raise OptionError(f"bisect takes a module, not {type(model).__name__}: wrap the function in one")
    tester = _Tester(model, Options.of({**options.arguments(), "check": True}), tried)
    for graph in _graphs(model, inputs, train):
        if tester.fails(graph):
            return _minimize(graph, tester)
    return None


class _Tester:
    """Compiles graphs and runs them, and remembers the last failure."""

    def __init__(self, model: torch.nn.Module, options: Options, tried: Callable[[], None]) -> None:
        self.options, self.tried = options, tried
        self.weights = {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}
        self.build = builder(options)
        self.last: Failure | None = None

    def fails(self, graph: _Graph) -> bool:
        failure = self._failure(graph)
        self.last = failure or self.last
        self.tried()
        return failure is not None

    def _failure(self, graph: _Graph) -> Failure | None:
        texts: list[str] = []
        refused: list[Failure] = []

        def build(text: str) -> Built:
            texts.append(text)
            try:
                return self.build(text)
            except LoweringError as error:
                refused.append(Failure(text, f"{type(error).__name__}: {error}"))
                raise

        inputs = graph.inputs
        # what is known of each value; the minifier drops it
        traced = make_fx(graph.module, tracing_mode="fake")(*inputs)
        traced.graph.eliminate_dead_code()
        names: dict[int, str] = {}
        for i, (node, value) in enumerate(zip(traced.graph.find_nodes(op="placeholder"), inputs, strict=True)):
            if value.data_ptr() in self.weights:
                names[i] = f"weight{i}"
                node.meta["desc"] = PlainAOTInput(i)
        compiled = GraphCompiler(names, self.options, build).compile(traced, graph.kind)
        if refused:
            return refused[0]
        try:
            compiled([t if i in names else t.clone() for i, t in enumerate(inputs)])
        except VerificationError as error:
            return Failure(texts[-1], str(error))
        return None


def _graphs(model: torch.nn.Module, inputs: Sequence[Any], train: bool) -> list[_Graph]:
    """The ATen graphs of a call, and with ``train`` of its backward, in the order in which they ran."""
    found: list[_Graph] = []

    def keep(kind: str) -> Callable[[GraphModule, Any], Callable[[Inputs], Any]]:
        def compiler(graph: GraphModule, _example: Any) -> Callable[[Inputs], Any]:
            def run(arguments: Inputs) -> Any:
                found.append(_Graph(graph, kind, [a.detach() for a in arguments]))
                with torch.no_grad():
                    return graph(*arguments)

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        return compiler

    backend = aot_autograd(
        fw_compiler=keep("forward"),
        bw_compiler=keep("backward"),
        inference_compiler=keep("inference"),
        decompositions=decompositions(),
        partition_fn=partial(min_cut_rematerialization_partition, compiler="effc"),
    )
    with torch.set_grad_enabled(train):
        results = torch.compile(model, backend=backend, dynamic=False)(*inputs)
    if train:
        _take_gradients(model, inputs, results)
    return found


def _take_gradients(model: torch.nn.Module, inputs: Sequence[Any], results: Any) -> None:
    """Run the backward of ``results`` for random gradients; ``.grad`` of parameters and inputs stays as it is."""
    tensors = [t for t in tree_leaves((list(model.parameters()), inputs)) if isinstance(t, torch.Tensor)]
    changing = [t for t in tensors if t.requires_grad]
    ends = [t for t in tree_leaves(results) if isinstance(t, torch.Tensor) and t.requires_grad]
    if not ends or not changing:
        raise OptionError(
            "nothing that the model returns has a gradient: let parameters or inputs require one, or bisect without train"
        )
    generator = torch.Generator().manual_seed(0)
    seeds = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in ends]
    torch.autograd.grad(ends, changing, seeds, allow_unused=True)


def _minimize(graph: _Graph, tester: _Tester) -> Culprit:
    def fails(part: GraphModule, inputs: Sequence[torch.Tensor]) -> bool:
        return tester.fails(_Graph(part, graph.kind, list(inputs)))

    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):  # it is talkative
        smallest, _ = minifier(graph.module, graph.inputs, fails, dump_state=lambda graph, inputs: None)
    assert tester.last is not None
    return Culprit(tester.last, _size(smallest), _size(graph.module))


def _size(graph: GraphModule) -> int:
    return sum(node.op == "call_function" for node in graph.graph.nodes)
