"""An importer and a compiler that stand in for effc's own: regions run by ATen, and hold their contract to the letter.

So capture is tested by itself: which ops are importable is the test's to say.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.fx import Node

from effc.compiler.capture import graph as capture_graph
from effc.compiler.capture.backend import compile_with
from effc.compiler.capture.importer.region import Region, SymbolSource
from effc.compiler.capture.nodes import Known
from effc.compiler.capture.partition import Group, is_scalar
from effc.compiler.capture.reference import evaluate
from effc.compiler.ir.options import Options

_numbers = itertools.count()


class AtenExecutable:
    """Runs a region by ATen, checks what it is given against the metadata, and places results as the metadata says."""

    def __init__(self, group: Group, region: Region) -> None:
        self.group, self.region = group, region
        self.program = SimpleNamespace(calls=(), kernels=(), notes=())
        self.notes = ["a note from the runtime"]

    def __call__(
        self, symbols: Sequence[int], tensors: Sequence[torch.Tensor], *, validate: bool = False
    ) -> list[torch.Tensor]:
        known = dict(zip(self.region.symbols, symbols, strict=True))
        for node, tensor in zip(self.region.inputs, tensors, strict=True):
            meta = node.meta["val"]
            assert tensor.dtype == meta.dtype
            assert list(tensor.shape) == [_number(s, known) for s in meta.shape]
            if not validate:
                live = [
                    (a, _number(b, known))
                    for a, b, n in zip(tensor.stride(), meta.stride(), tensor.shape, strict=True)
                    if n > 1
                ]
                assert all(a == b for a, b in live), f"{node}: strides {tensor.stride()}, promised {meta.stride()}"
        targets = self.group.mutations
        inputs = [t.clone() if n in targets.values() else t for n, t in zip(self.region.inputs, tensors, strict=True)]
        values = evaluate(self.group, self.region, symbols, inputs)
        results = []
        for node, value in zip(self.region.outputs, values, strict=True):
            if node in targets:
                tensors[self.region.inputs.index(targets[node])].detach().copy_(value)
                continue
            meta = node.meta["val"]
            sizes, strides = ([_number(s, known) for s in part] for part in (meta.shape, meta.stride()))
            dtype = torch.int8 if meta.dtype == torch.uint8 else meta.dtype
            results.append(torch.empty_strided(sizes, strides, dtype=dtype).copy_(value.view(dtype)))
        return results

    def run_stepwise(
        self, symbols: Sequence[int], tensors: Sequence[torch.Tensor], _observer: object, *, validate: bool = False
    ) -> list[torch.Tensor]:
        return self(symbols, tensors, validate=validate)


class Stand:
    """``backend`` compiles for ``torch.compile``; ``refuse`` says which nodes the stand-in importer does not take."""

    def __init__(self, refuse: Callable[[Node], bool] = lambda node: False) -> None:
        self.refuse = refuse
        self.executables: dict[str, AtenExecutable] = {}
        self.params: list[str] = []
        self.failures: list[Exception] = []
        self.cannot_build: Callable[[Group], Exception | None] = lambda group: None

    def install(self, patch: pytest.MonkeyPatch) -> Stand:
        patch.setattr(capture_graph, "supported", lambda node: "refused by the test" if self.refuse(node) else None)
        patch.setattr(capture_graph, "import_region", self._import)
        return self

    def backend(self, gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return compile_with(gm, inputs, Options(), self.builder)

    def backend_with(self, **options: Any) -> Callable[..., Any]:
        return lambda gm, inputs: compile_with(gm, inputs, Options(**options), self.builder)

    def builder(self, options: Options) -> Callable[[str], Any]:
        def build(text: str) -> Any:
            if self.failures:
                raise self.failures.pop(0)
            error = self.cannot_build(self.executables[text].group)
            if error is not None:
                raise error
            report = SimpleNamespace(seconds={"emit": 0.001}, from_cache=False)
            return SimpleNamespace(executable=self.executables[text], report=report)

        return build

    def _import(
        self,
        nodes: Sequence[Node],
        inputs: Sequence[Node],
        outputs: Sequence[Node],
        *,
        params: Mapping[Node, str],
        mutations: Mapping[Node, Node],
        name: str,
        known: Known,
    ) -> Region:
        tensors = tuple(n for n in inputs if not is_scalar(n))
        present = {*nodes, *inputs}
        for node in nodes:
            for operand in node.all_input_nodes:
                assert operand in present or is_scalar(operand), (
                    f"{node} reads {operand}, which is no input of its region"
                )
        self.params += [params[n] for n in tensors if n in params]
        sources: dict[str, SymbolSource] = {}
        for node in inputs:
            value = node.meta["val"]
            for dim, size in [(None, value)] if is_scalar(node) else list(enumerate(value.shape)):
                if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
                    sources.setdefault(str(size), SymbolSource(node, dim))
        text = f"{name} {next(_numbers)}"
        region = Region(text, tuple(sources), tuple(sources.values()), tensors, tuple(outputs), {})
        self.executables[text] = AtenExecutable(
            Group(list(nodes), list(inputs), list(outputs), dict(mutations)), region
        )
        return region


def _number(size: int | torch.SymInt, symbols: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.xreplace({s: symbols[s.name] for s in expression.free_symbols}))
