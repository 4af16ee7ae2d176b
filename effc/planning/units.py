"""Weights that are decided on together, and the kernels that read them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from effc.compiler.ir.candidate import Candidate, Latency
from effc.compiler.ir.site import Site
from effc.planning.alike import surroundings
from effc.planning.feeders import Feeders
from effc.planning.trial import Compiled, Kernels
from effc.planning.variants import Pairs


@dataclass(frozen=True)
class Unit:
    """Weights that are decided on together, for one kernel of the exact model reads them all: the one of ``site``. ``elsewhere``: seconds
    of its other kernels that read them. ``feeders``: of the exact model; ``around``: what these kernels and their neighbours compute there
    (`alike.surroundings`).
    """

    site: str
    params: frozenset[str]
    elsewhere: float
    feeders: Feeders
    around: Hashable

    def candidate(self, kernels: Kernels, feeders: Feeders, name: str, pairs: Pairs, error: float) -> Candidate | None:
        """A variant's, in the place of the site's kernel; None where PyTorch would run it, in a time that nothing tells."""
        sites, latency = self.taken(kernels, feeders)
        if not sites:
            return None
        specs, symbols = tuple((site.spec,) for site in sites), tuple(site.symbols for site in sites)
        return Candidate(name, specs, symbols, pairs, error, latency, proposed=True)

    def taken(self, kernels: Kernels, feeders: Feeders) -> tuple[list[Site], Latency]:
        """The kernels that read these weights, and what they take; with those of their ``feeders`` that the exact model has not, less those
        that only that has.
        """
        sites, seconds = [], feeders.beyond(self.feeders, self.params)
        elsewhere = self.elsewhere + self.feeders.beyond(feeders, self.params).seconds
        for site, latency in zip(kernels.sites, kernels.latencies(), strict=True):
            if self.params.intersection(_names(site)):
                sites.append(site)
                seconds = seconds + latency
        return sites, replace(seconds, seconds=max(seconds.seconds - elsewhere, 0.0))


def units_of(plain: Compiled) -> list[Unit]:
    """Those of the exact model; weights that several kernels read belong to the slowest of these."""
    around = surroundings(plain.sites)
    timed = [
        (latency.seconds, site, place)
        for place, (site, latency) in enumerate(zip(plain.sites, plain.latencies(), strict=True))
        if site.params
    ]
    found, taken, feeders = [], set[str](), Feeders.found(plain)
    for _, site, place in sorted(timed, key=lambda t: -t[0]):
        params = frozenset(site.params)
        if params.isdisjoint(taken):
            readers = [(s, around[i]) for s, other, i in timed if i != place and params.intersection(other.params)]
            elsewhere, others = sum(s for s, _ in readers), tuple(kernels for _, kernels in readers)
            found.append(Unit(site.name, params, elsewhere, feeders, (around[place], others)))
            taken |= params
    return found


def _names(site: Site) -> list[str]:
    """Names of the parameters whose forms a kernel reads."""
    return [name.partition(":")[0] for name in site.params]
