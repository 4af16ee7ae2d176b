"""What prices kernels for the planner: the learned model of a machine like this one, or the roofline where there is none.

A model of another machine is trusted less the further that is from this one. A schedule counts as faster than the template's own only where
the model is sure of both and expects a gain that its errors do not explain; else both have one price, and the own one is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

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
from effc.speed import host_hardware

#: Distance of machines (`shipped.distance`) up to which they are of one kind, and beyond which a model says nothing about this one.
_KIND, _FOREIGN = 0.3, 2.0
#: Predicted gain of a schedule over the template's own from which on it is taken.
GAIN = 0.03


@dataclass(frozen=True)
class Pricing:
    """``told``: what the prices come from, for the report."""

    price: Price
    told: str


def pricing(options: Options, candidates: Iterable[Sequence[Candidate]]) -> Pricing:
    """Prices on this machine; those of all kernels of ``candidates`` are predicted at once. ArtifactError, OptionError: the cost model that
    the options name cannot be used.
    """
    hardware = host_hardware(Cache(options.cache_dir))
    model = _model(options, hardware)
    if isinstance(model, str):
        return Pricing(
            lambda spec, symbols: roofline.latency(spec, symbols, hardware), f"{model}: the roofline prices kernels"
        )
    learned = _Learned(model.predictor, hardware, torch.get_num_threads(), model.far)
    learned.learn(candidate for listed in candidates for candidate in listed)
    return Pricing(learned, model.told)


@dataclass(frozen=True)
class _Chosen:
    predictor: Predictor
    far: float
    told: str


def _model(options: Options, hardware: Hardware) -> _Chosen | str:
    """The model to use, or why there is none."""
    if options.cost_model is not None:
        found = files.load(named(options.cost_model))
        far = min((distance(hardware, machine) for machine in found.machines), default=0.0)
        apart = f", of a machine at distance {far:.1f} from this one" if far else ""
        return _Chosen(found.predictor, far, f"kernels are priced by the cost model {options.cost_model}{apart}")
    near = nearest(hardware)
    if near is None:
        return "no cost model is shipped that this effc can read"
    name, far = near
    if far > _FOREIGN:
        return f"no cost model fits this machine (the nearest, {name}, is at distance {far:.1f})"
    what = (
        "of this kind of machine" if far <= _KIND else f"the nearest, of a machine at distance {far:.1f} from this one"
    )
    return _Chosen(files.load(named(name)).predictor, far, f"kernels are priced by the cost model {name}, {what}")


class _Learned:
    """`Price` by a model."""

    def __init__(self, predictor: Predictor, hardware: Hardware, threads: int, far: float) -> None:
        self._predictor, self._hardware, self._threads, self._far = predictor, hardware, threads, far
        self._known: dict[tuple[int, tuple[int, ...]], Latency] = {}
        self._held: list[KernelSpec] = []  # whose ids are keys

    def __call__(self, spec: KernelSpec, symbols: Sequence[int]) -> Latency:
        found = self._known.get((id(spec), tuple(symbols)))
        return self._predicted([(spec, symbols)])[0] if found is None else found

    def learn(self, candidates: Iterable[Candidate]) -> None:
        """Predict all kernels of those that were not measured."""
        sets = [
            (alternatives, symbols)
            for candidate in candidates
            if candidate.latency is None
            for alternatives, symbols in zip(candidate.kernels, candidate.symbols, strict=True)
        ]
        latencies = iter(self._predicted([(spec, symbols) for listed, symbols in sets for spec in listed]))
        for listed, symbols in sets:
            own: Latency | None = None
            for spec in listed:
                latency = next(latencies)
                own = own or latency
                self._known[id(spec), tuple(symbols)] = latency if _surely_faster(latency, own) else own
                self._held.append(spec)

    def _predicted(self, kernels: Sequence[tuple[KernelSpec, Sequence[int]]]) -> list[Latency]:
        found = self._predictor.latencies(kernels, self._hardware, self._threads)
        return [replace(latency, uncertainty=latency.uncertainty * (1 + self._far)) for latency in found]


def _surely_faster(latency: Latency, own: Latency) -> bool:
    return not unsure(latency) and not unsure(own) and latency.seconds <= (1 - GAIN) * own.seconds
