"""``effc.save``: a compiled model as a folder that runs without its source, without Dynamo and without MLIR.

The folder holds one archive (``runtime/archive.py``): the interface, the graph of calls, for each region its code, its graph IR (so
that another CPU can have code of its own) and its derived weights, and the model's weights.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from effc.calibrating.calibration import cloned
from effc.calibrating.identity import original, trains
from effc.compiler.capture.assemble import Assembled, CompiledGroup
from effc.compiler.capture.backend import builder
from effc.compiler.capture.graph import GraphCompiler
from effc.compiler.capture.planned import code_options
from effc.compiler.codegen.cpu.permission import usable
from effc.compiler.compress.forms import steps_of
from effc.compiler.ir.errors import ArtifactError, InputError, OptionError, UnsupportedError
from effc.compiler.ir.options import Options
from effc.costmodel.hardware import flags
from effc.on_cpu import require_cpu
from effc.runtime import archive
from effc.runtime.callgraph import METHODS, PYTHON, encode
from effc.shipping.exporting import Exported, export
from effc.shipping.loading import FILE, KIND

_NAMES: Mapping[Callable[..., Any], str] = {function: name for name, function in PYTHON.items()}


def save(
    model: nn.Module,
    inputs: Any,
    directory: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    options: Options | Mapping[str, Any] | None = None,
) -> None:
    """Compile ``model`` for inference and write it to ``directory``, which is made, or replaced if it holds a saved model.

    ``inputs``: a tensor, or a tuple of positional arguments; ``kwargs``: the named ones. Sizes are fixed but for those that
    ``dynamic_shapes`` names, as for ``torch.export.export``. ``options``: as for ``torch.compile``, without ``check``.

    InputError: a model in training mode, or inputs that effc does not keep. OptionError: a wrong option. UnsupportedError: the model cannot
    be traced as a whole. ArtifactError: ``directory`` cannot be written.
    """
    module, chosen = original(model), Options.of(options)
    if not isinstance(module, nn.Module) or trains(module):
        raise InputError("save takes a module in eval mode: call model.eval() first")
    if chosen.check:
        raise OptionError("option 'check' compares with ATen while a model runs; a saved model does not: leave it out")
    _check_free(Path(directory))
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    require_cpu("effc.save", module, (args, kwargs))
    exported = export(module, cloned(args), cloned(dict(kwargs or {})), dynamic_shapes)
    with torch.no_grad():
        weights = _by_position(exported)
        compiler = GraphCompiler(exported.names, chosen, builder(chosen), weights, steps_of(chosen))
        assembled = compiler.assembled(exported.gm, "inference")
        values, tensors = _Encoder(exported, assembled, chosen).encode()
    _write(Path(directory), values, tensors)


def _by_position(exported: Exported) -> list[torch.Tensor | None]:
    """The weights where the graph's inputs have them."""
    count = max(exported.names, default=-1) + 1
    return [exported.weights[exported.names[i]] if i in exported.names else None for i in range(count)]


class _Encoder:
    """Numbers the values of the graph and the tensors of the archive."""

    def __init__(self, exported: Exported, assembled: Assembled, options: Options) -> None:
        self.exported, self.assembled, self.options = exported, assembled, options
        self.tensors: list[torch.Tensor] = []
        self.places: dict[tuple[Any, ...], int] = {}
        self.numbers: dict[Node, int] = {}
        self.regions = {stub: i for i, stub in enumerate(assembled.regions)}
        self.constants: list[int] = []
        self.held: dict[str, int] = {}

    def encode(self) -> tuple[dict[str, Any], list[torch.Tensor]]:
        nodes = list(self.assembled.graph.nodes)
        placeholders = [n for n in nodes if n.op == "placeholder"]
        held = [n for n in nodes if n.op == "get_attr"]
        self.numbers = {n: i for i, n in enumerate([*placeholders, *held])}
        self.held = {str(node.target): number for number, node in enumerate(held)}
        order = [
            None if not node.users else place for node, place in zip(placeholders, self.exported.order, strict=True)
        ]
        read = {place for place in order if isinstance(place, str)}
        weights = {name: self._tensor(t) for name, t in self.exported.weights.items() if name in read}
        for node in held:
            self.constants.append(self._tensor(_attribute(self.assembled.root, str(node.target))))
        steps = [self._step(n) for n in nodes if n.op in ("call_function", "call_method")]
        (output,) = (n for n in nodes if n.op == "output")
        values = {
            "effc": version("effc"),
            "isa": sorted(usable(flags())),
            "options": code_options(self.options),
            "interface": self.exported.interface.to_json(),
            "order": order,
            "weights": weights,
            "constants": self.constants,
            "steps": steps,
            "results": [self._argument(a) for a in output.args[0]],
            "outputs": self.exported.outputs,
            "regions": [self._region(made, placeholders) for made in self.assembled.regions.values()],
        }
        return values, self.tensors

    def _tensor(self, tensor: torch.Tensor) -> int:
        """Its number in the archive; one tensor under two names is kept once."""
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in self.places or tensor.numel() == 0:
            self.places[place] = len(self.tensors)
            self.tensors.append(tensor)
        return self.places[place]

    def _region(self, made: CompiledGroup, placeholders: Sequence[Node]) -> dict[str, Any]:
        """Code, graph IR, and what is derived from the weights, which are among the region's ``inputs``."""
        sources = [self._source_of(n) for n in made.region.inputs]
        executable = made.built.executable
        derived: list[torch.Tensor] = []
        if executable.weights is not None:
            derived = executable.weights.current([self._value_of(s) for s in sources]).derived
        code = torch.frombuffer(bytearray(made.built.artifact.to_bytes()), dtype=torch.uint8)
        return {
            "text": made.region.text,
            "code": self._tensor(code),
            "inputs": sources,
            "derived": [self._tensor(t) for t in derived],
            "validates": made.validates,
        }

    def _source_of(self, node: Node) -> str | int:
        """A weight's name, a constant's number, or ``""``."""
        if node.op == "get_attr":
            return self.held[str(node.target)]
        described = node.meta.get("desc")
        return self.exported.names.get(described.idx, "") if node.op == "placeholder" and described is not None else ""

    def _value_of(self, source: str | int) -> torch.Tensor:
        if isinstance(source, int):
            return self.tensors[self.constants[source]]
        return self.exported.weights.get(source, torch.empty(0))

    # -- steps ------------------------------------------------------------------------------------------------------
    def _step(self, node: Node) -> dict[str, Any]:
        call = self._call(node)
        step = {
            "call": call,
            "args": [self._argument(a) for a in node.args],
            "kwargs": {k: self._argument(a) for k, a in node.kwargs.items()},
            "to": len(self.numbers),
        }
        self.numbers[node] = len(self.numbers)
        return step

    def _call(self, node: Node) -> list[Any]:
        target = node.target
        if node.op == "call_method" and target in METHODS:
            return ["method", target]
        if isinstance(target, torch._ops.OpOverload):
            return ["op", str(target)]
        if callable(target) and target in self.regions:
            return ["region", self.regions[target]]
        if callable(target) and target in _NAMES:
            return ["python", _NAMES[target]]
        raise UnsupportedError(f"the model cannot be saved: it calls {target}, which is no PyTorch operator")

    def _argument(self, value: Any) -> Any:
        try:
            return encode(value, lambda v: self.numbers[v] if isinstance(v, Node) else None)
        except TypeError as error:
            raise UnsupportedError(f"the model cannot be saved: {error} stands in its graph") from error


def _attribute(root: Any, path: str) -> torch.Tensor:
    for name in path.split("."):
        root = getattr(root, name)
    if not isinstance(root, torch.Tensor):
        raise UnsupportedError(f"the model cannot be saved: its graph holds {path}, which is {type(root).__name__}")
    return root.detach()


def _check_free(directory: Path) -> None:
    """ArtifactError where something else than a saved model lies there."""
    if directory.exists() and (not directory.is_dir() or {p.name for p in directory.iterdir()} - {FILE}):
        raise ArtifactError(f"{directory} exists and is no saved model: choose another folder, or remove it")


def _write(directory: Path, values: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> None:
    """The folder, complete or not at all."""
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        archive.write(temporary / FILE, KIND, values, tensors)
        if directory.exists():
            os.replace(temporary / FILE, directory / FILE)
        else:
            os.rename(temporary, directory)
    except OSError as error:
        raise ArtifactError(f"{directory} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
