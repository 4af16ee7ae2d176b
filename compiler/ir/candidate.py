"""``Candidate``: what can run at a site. The dense one is always there; `effc.planning.variants` makes those of compressions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from effc.compiler.ir.site import Site
from effc.compiler.ir.spec import KernelSpec

#: The pass name of the candidate that changes nothing but the schedule.
DENSE = "dense"


@dataclass(frozen=True)
class Latency:
    """Predicted ``seconds`` of one call. ``uncertainty``: half the width of the likely range, as a share of ``seconds``."""

    seconds: float
    uncertainty: float = 0.0

    def __add__(self, other: Latency) -> Latency:
        """One after the other; errors of one model go the same way, so the widths add up."""
        seconds = self.seconds + other.seconds
        width = self.seconds * self.uncertainty + other.seconds * other.uncertainty
        return Latency(seconds, width / seconds if seconds else 0.0)

    def to_json(self) -> list[float]:
        return [self.seconds, self.uncertainty]

    @staticmethod
    def from_json(data: Any) -> Latency:
        seconds, uncertainty = data
        return Latency(float(seconds), float(uncertainty))


@dataclass(frozen=True)
class Candidate:
    """``kernels`` run in order in the site's place, each given by its alternatives: the same kernel under other schedules,
    the template's own choice first. ``error``: estimated relative L2 error that it adds to the site's result; 0 is exact.
    ``symbols``: for each kernel the values of its symbols. ``latency``: None where a price must serve; measured, or ``proposed``:
    predicted, and measured once the candidate is taken.
    ``saved``: bytes by which the weights that it reads are stored smaller.
    """

    pass_name: str
    kernels: tuple[tuple[KernelSpec, ...], ...]
    symbols: tuple[tuple[int, ...], ...]
    options: tuple[tuple[str, Any], ...] = ()
    error: float = 0.0
    latency: Latency | None = None
    proposed: bool = False
    saved: int = 0

    @property
    def exact(self) -> bool:
        return self.error == 0.0


#: A spec under each schedule worth trying, the template's own choice first.
Alternatives = Callable[[KernelSpec], Iterable[KernelSpec]]


def dense(site: Site, alternatives: Alternatives = lambda spec: (spec,)) -> Candidate:
    """The site as it is, under the schedules that ``alternatives`` has for its kernel; there is one at every site."""
    return Candidate(DENSE, (tuple(alternatives(site.spec)),), (site.symbols,))
