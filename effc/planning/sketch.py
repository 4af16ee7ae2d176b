"""The kernels that a model would have by some options, at predicted times."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.capture.recording import Recording
from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.site import Site, sites_of
from effc.planning.pricing import Pricing


@dataclass(frozen=True)
class Sketch:
    """`trial.Kernels` of programs without code. ``predicted``: of each site."""

    recording: Recording
    sites: tuple[Site, ...]
    predicted: tuple[Latency, ...]

    @staticmethod
    def of(recording: Recording, prices: Pricing) -> Sketch:
        sites = tuple(sites_of(recording.programs))
        return Sketch(recording, sites, tuple(prices.latencies([(site.spec, site.symbols) for site in sites])))

    def latencies(self) -> list[Latency]:
        return list(self.predicted)
