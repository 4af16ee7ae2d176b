"""What the stages of a compressed graph make of each parameter: a form, and what its parts are stored as, and at what error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from effc.compiler.compress.compressor import Compressed, Stage, knowing
from effc.compiler.compress.form import Form
from effc.compiler.compress.sites import WeightSite
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir.calibration import Calibration
from effc.planning.proxies import output_error


@dataclass(frozen=True, eq=False)
class Layer:
    """``stored`` stands for ``matrix``, float32 ``[out, sum]``, which the plan calls ``name``; the graph's own name is that of ``site``: it
    differs where layers share a factor.
    """

    name: str
    stored: StoredWeight[Form]
    site: WeightSite
    matrix: Tensor

    def error(self, calibration: Calibration) -> float:
        """Relative L2 error for the activations that calibration has seen; of a table that is a layer too, its rows' if that is more."""
        form, seen = self.stored.form, calibration.sites.get(self.name)
        found = output_error(form, self.matrix, seen, self.name)
        looked_up = seen is not None and "embedding" in self.site.kinds
        return max(found, output_error(form, self.matrix, None, self.name)) if looked_up else found


@dataclass(frozen=True, eq=False)
class Layered:
    """``layers`` of one parameter: its form, then those of the form's parts."""

    layers: Sequence[Layer]

    @property
    def first(self) -> Layer:
        return self.layers[0]

    @property
    def weights(self) -> Mapping[str, StoredWeight[Form]]:
        """As a plan holds them."""
        return {layer.name: layer.stored for layer in self.layers}

    def error(self, calibration: Calibration) -> float:
        """Relative L2 error of the parameter's layer: those of its layers are taken as independent, so their squares add up."""
        known = calibration
        for layer in self.layers:
            known = knowing({layer.name: layer.stored})(known)
        return math.sqrt(sum(layer.error(known) ** 2 for layer in self.layers))


def layered(compressed: Compressed) -> Iterator[Layered]:
    """Of each parameter that a stage changes."""
    made = {name for stage in compressed.stages for name in stage.rewritten.tensors}
    tensors = compressed.tensors
    for number, stage in enumerate(compressed.stages):
        for site in stage.sites:
            if site.name not in made:
                yield Layered(list(_layers(site.name, site.name, compressed.stages[number:], tensors)))


def _layers(name: str, known_as: str, stages: Sequence[Stage], tensors: Mapping[Node, Tensor]) -> Iterator[Layer]:
    """Of what the graph calls ``known_as``, and a plan ``name``."""
    for number, stage in enumerate(stages):
        site = next((s for s in stage.sites if s.name == known_as), None)
        if site is None:
            continue
        stored = stage.weights[known_as]
        yield Layer(name, stored, site, site.matrix(tensors[site.param]))
        held = stage.rewritten.tensors
        for role, part in stored.form.parts().items():
            own = f"{known_as}:{role}"
            inner = own if own in held else next((n for n, tensor in held.items() if tensor is part), None)
            if inner is not None:
                yield from _layers(f"{name}:{role}", inner, stages[number + 1 :], tensors)
        return
