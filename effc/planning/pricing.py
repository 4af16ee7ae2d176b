"""What prices kernels for the planner: the learned model of the machine that is most like this one, or the roofline where there is none.

A model of another machine is trusted less the further that is from this one, and beyond some distance not at all: then it proposes, and
what is measured decides. A schedule counts as faster than the template's own only where the model is sure of both and expects a gain that
its errors do not explain; else both have one price, and the own one is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from effc.compiler.ir.candidate import Candidate, Latency
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel import roofline
from effc.costmodel.choices import Price
from effc.costmodel.hardware import Hardware
from effc.costmodel.model import files
from effc.costmodel.model.predictor import Predictor, unsure
from effc.costmodel.model.shipped import distance, named, nearest
from effc.runtime.cache import Cache
from effc.runtime.threads import threads
from effc.speed import host_hardware

#: Distance of machines (`shipped.distance`) up to which they are of one kind, and beyond which a model is unsure of all that it says.
_KIND, _FOREIGN = 0.3, 2.0
#: Predicted gain of a schedule over the template's own from which on it is taken.
GAIN = 0.03

#: A kernel and the values of its symbols.
Kernel = tuple[KernelSpec, Sequence[int]]


class Pricing(Protocol):
    """Prices on this machine. ``told``: what they come from, for the report."""

    told: str

    def latencies(self, kernels: Sequence[Kernel]) -> list[Latency]:
        """Of one call of each."""
        ...

    def of(self, candidates: Iterable[Candidate]) -> Price:
        """With the kernels of ``candidates`` priced at once."""
        ...


def pricing(options: Options) -> Pricing:
    """ArtifactError, OptionError: the cost model that the options name cannot be used."""
    hardware = host_hardware(Cache(options.cache_dir))
    model = _model(options, hardware)
    if isinstance(model, str):
        return _Roofline(hardware, f"{model}: the roofline prices kernels")
    return _Learned(model, hardware, threads().count())


@dataclass(frozen=True)
class _Chosen:
    predictor: Predictor
    far: float
    told: str


def _model(options: Options, hardware: Hardware) -> _Chosen | str:
    """The model to use, or why there is none."""
    if options.cost_model is not None:
        found = files.load(named(options.cost_model))
        far = min((distance(hardware, machine) for machine in found.machines), default=math.inf)
        return _Chosen(found.predictor, far, _told(str(options.cost_model), "", far))
    near = nearest(hardware)
    if near is None:
        return "no cost model is shipped that this effc can read"
    name, far = near
    return _Chosen(files.load(named(name)).predictor, far, _told(name, "the nearest, ", far))


def _told(name: str, why: str, far: float) -> str:
    """For the report: which model prices, ``why`` this one, and how far its machine is from this one."""
    what = "of this kind of machine" if far <= _KIND else f"{why}of a machine at distance {far:.1f} from this one"
    if far > _FOREIGN:
        what = f"{what}: too far" if math.isfinite(far) else "which names no machine that it was trained on: too little"
        what += " to be sure of, so every kernel keeps the schedule of its template, unless another is measured"
    return f"kernels are priced by the cost model {name}, {what}"


class _Roofline:
    """`Pricing` where there is no model."""

    def __init__(self, hardware: Hardware, told: str) -> None:
        self.told, self._hardware = told, hardware

    def latencies(self, kernels: Sequence[Kernel]) -> list[Latency]:
        return [roofline.latency(spec, symbols, self._hardware) for spec, symbols in kernels]

    def of(self, candidates: Iterable[Candidate]) -> Price:
        return lambda spec, symbols: roofline.latency(spec, symbols, self._hardware)


class _Learned:
    """`Pricing` by a model."""

    def __init__(self, model: _Chosen, hardware: Hardware, threads: int) -> None:
        self.told = model.told
        self._model, self._hardware, self._threads = model, hardware, threads

    def latencies(self, kernels: Sequence[Kernel]) -> list[Latency]:
        found, far = self._model.predictor.latencies(kernels, self._hardware, self._threads), self._model.far
        if far > _FOREIGN:
            return [replace(latency, uncertainty=max(1.0, latency.uncertainty * (1 + _FOREIGN))) for latency in found]
        return [replace(latency, uncertainty=latency.uncertainty * (1 + far)) for latency in found]

    def of(self, candidates: Iterable[Candidate]) -> Price:
        sets = [
            (alternatives, symbols)
            for candidate in candidates
            if candidate.latency is None
            for alternatives, symbols in zip(candidate.kernels, candidate.symbols, strict=True)
        ]
        latencies = iter(self.latencies([(spec, symbols) for listed, symbols in sets for spec in listed]))
        known: dict[tuple[int, tuple[int, ...]], Latency] = {}  # by the identity of a spec, which ``sets`` holds
        for listed, symbols in sets:
            own: Latency | None = None
            for spec in listed:
                latency = next(latencies)
                own = own or latency
                known[id(spec), tuple(symbols)] = latency if _surely_faster(latency, own) else own

        def price(spec: KernelSpec, symbols: Sequence[int]) -> Latency:
            found = known.get((id(spec), tuple(symbols))) if sets else None
            return self.latencies([(spec, symbols)])[0] if found is None else found

        return price


def _surely_faster(latency: Latency, own: Latency) -> bool:
    return not unsure(latency) and not unsure(own) and latency.seconds <= (1 - GAIN) * own.seconds
