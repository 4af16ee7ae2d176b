"""``effc.load``: run what ``effc.save`` wrote. It needs no source of the model, and starts neither Dynamo nor MLIR.

On a CPU that lacks what the code was compiled for, or with another version of effc, the regions are compiled again from their graph
IR, if the toolchain is there.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from effc.compiler.codegen.cpu.permission import usable
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import ArtifactError, LoweringError
from effc.costmodel.hardware import flags
from effc.runtime import archive
from effc.runtime.artifact import Artifact
from effc.runtime.callgraph import function_of
from effc.runtime.executable import Executable
from effc.runtime.interface import Interface
from effc.runtime.pages import Pages
from effc.runtime.structure import unflatten

FILE = "model.effc"
KIND = "model 1"

#: Beginnings of the names, in /proc/cpuinfo, of instruction sets that code may use; other flags do not matter to it.
_ISA = ("avx", "sse", "ssse", "pni", "fma", "bmi", "amx", "f16c", "popcnt", "abm", "movbe", "adx", "aes", "vaes", "sha", "gfni",
        "pclmul", "vpclmul")  # fmt: skip


class Loaded:
    """A saved model. Call it as the model; it computes without gradients. Calls may come from any threads at once."""

    def __init__(
        self,
        interface: Interface,
        order: Sequence[torch.Tensor | int],
        function: Callable[[list[Any]], tuple[Any, ...]],
        outputs: Mapping[str, Any],
    ) -> None:
        self._interface, self._function, self._outputs = interface, function, outputs
        self._values = [None if isinstance(place, int) else place for place in order]
        self._given = [(position, place) for position, place in enumerate(order) if isinstance(place, int)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs; dataclasses and named tuples among them come as dicts. InputError: inputs that do not fit."""
        with torch.no_grad():
            given = self._interface.bind(args, kwargs)
            values: list[Any] = list(self._values)
            for position, place in self._given:
                values[position] = given[place]
            return unflatten(self._outputs, self._function(values))

    def __repr__(self) -> str:
        guards = [f"{g.dtype}[{', '.join(map(str, g.sizes))}]" for g in self._interface.guards]
        return f"effc model({', '.join(guards)})"


def load(directory: str | os.PathLike[str]) -> Loaded:
    """The model in ``directory``. It is machine code: load only what you trust.

    ArtifactError: there is none; it is truncated, edited, of another version, or needs ops that this PyTorch lacks; or it was
    saved for another CPU and cannot be compiled for this one.
    """
    path = Path(directory) / FILE
    found = archive.read(path, KIND)
    try:
        return _Decoder(found).model()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ArtifactError(f"{path} does not hold what a saved model holds ({error!r}); save it again") from error


def _misfit(values: Mapping[str, Any]) -> str:
    """Why the saved code cannot be used here, or ``""``. The calling convention is that of one version of effc."""
    if values["effc"] != version("effc"):
        return f"by effc {values['effc']}, and this is effc {version('effc')}"
    missing = sorted(f for f in set(values["isa"]) - usable(flags()) if f.startswith(_ISA))
    if not missing:
        return ""
    why = "this one lacks" if set(missing) - set(flags()) else "the system keeps from this process"
    return f"for a CPU with {', '.join(missing)}, which {why}"


class _Decoder:
    def __init__(self, found: archive.Archive) -> None:
        self.values, self.tensors = found.values, found.tensors
        self._pages, self._copies = Pages(), dict[int, torch.Tensor]()
        self.weights: dict[str, torch.Tensor] = {
            name: self.tensors[number] for name, number in self.values["weights"].items()
        }
        misfit = _misfit(self.values)
        self.fits = not misfit
        if misfit and importlib.util.find_spec("torch_mlir") is None:
            raise ArtifactError(
                f"the model was saved {misfit}, and the package torch-mlir, which would compile it anew, is not installed: install "
                "it, or save the model again with the same effc on such a machine"
            )

    def model(self) -> Loaded:
        values = self.values
        interface = Interface.from_json(values["interface"])
        order: list[torch.Tensor | int] = []
        for place in values["order"]:
            if place is None:  # a weight that nothing reads
                order.append(torch.empty(0))
            else:
                order.append(self.weights[place] if isinstance(place, str) else interface.tensor_number(place))
        order += [self.tensors[number] for number in values["constants"]]
        regions = [self._region(data) for data in values["regions"]]
        return Loaded(
            interface, order, function_of(len(order), values["steps"], values["results"], regions), values["outputs"]
        )

    def _region(self, data: Mapping[str, Any]) -> Callable[..., Sequence[torch.Tensor]]:
        executable = self._adopted(data) if self.fits else self._built(data["text"])
        if not data["validates"]:
            return executable

        def call(symbols: Sequence[int], tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
            return executable(symbols, tensors, validate=True)

        return call

    def _adopted(self, data: Mapping[str, Any]) -> Executable:
        """The region's saved code, with the weights that were derived for it."""
        executable = Artifact.from_bytes(self.tensors[data["code"]].numpy().tobytes()).executable()
        if executable.weights is not None:
            inputs = [self._weight(source) for source in data["inputs"]]
            executable.weights.adopt(inputs, [self._derived(number) for number in data["derived"]])
        return executable

    def _derived(self, number: int) -> torch.Tensor:
        """A derived weight, which regions may share, out of the mapped file: a file's pages are small, which costs kernels a third."""
        mapped = self.tensors[number]
        if not mapped.is_contiguous():
            return mapped
        if number not in self._copies:
            self._copies[number] = self._pages.copy(mapped)
        return self._copies[number]

    def _weight(self, source: str | int) -> torch.Tensor:
        """A weight by its name, a constant by its number, or nothing where a region reads neither."""
        constants: list[int] = self.values["constants"]
        return self.tensors[constants[source]] if isinstance(source, int) else self.weights.get(source, torch.empty(0))

    def _built(self, text: str) -> Executable:
        """The region compiled for this CPU."""
        from effc.compiler.build import build
        from effc.runtime.cache import Cache

        options = {**self.values["options"], "schedules": {}}  # of the other CPU
        try:
            return build(text, options=options, cache=Cache(None), target=Target.host()).executable
        except LoweringError as error:
            raise ArtifactError(
                f"the model was saved for another CPU, and does not compile for this one: {error}"
            ) from error
