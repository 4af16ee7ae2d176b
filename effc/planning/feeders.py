"""Kernels that read no weights and work for one that does: what normalizes, quantizes or moves its activation.

A compression may change them: a kernel that finds the scales of rows is there for the product of codes behind it. So they belong to what
its candidate takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from effc.compiler.ir.candidate import Latency
from effc.costmodel.neighbours import links
from effc.planning.trial import Kernels

#: Latencies of kernels by `KernelSpec.key`.
_Kernels = dict[str, Latency]


@dataclass(frozen=True)
class Feeders:
    """``of``: by the name of a weight, the kernels that work for those that read it or a form of it."""

    of: Mapping[str, _Kernels]

    @staticmethod
    def found(compiled: Kernels) -> Feeders:
        """In ``compiled``, whose kernels are timed or priced. One whose result several read works for the first of them."""
        readers: dict[int, int] = {}
        for link in links(compiled.recording.programs):
            readers.setdefault(link.writer, link.reader)
        of: dict[str, _Kernels] = {}
        for number, (site, latency) in enumerate(zip(compiled.sites, compiled.latencies(), strict=True)):
            reader = number
            while not compiled.sites[reader].params and reader in readers:
                reader = readers[reader]
            if reader != number:
                for name in dict.fromkeys(param.partition(":")[0] for param in compiled.sites[reader].params):
                    kernels = of.setdefault(name, {})
                    kernels[site.spec.key()] = kernels.get(site.spec.key(), Latency(0.0)) + latency
        return Feeders(of)

    def beyond(self, other: Feeders, weights: Iterable[str]) -> Latency:
        """Of those that work for these weights here and not in ``other``."""
        names = list(weights)
        here, there = self._together(names), other._together(names)
        return sum((latency for key, latency in here.items() if key not in there), Latency(0.0))

    def _together(self, weights: Iterable[str]) -> _Kernels:
        found: _Kernels = {}
        for name in weights:
            found |= self.of.get(name, {})
        return found
