"""``Candidate``: what a rewrite proposes at a site; and the registry through which rewrites propose.

A rewrite plugs into planning by one function::

    @proposes("low_rank")
    def candidates(site: Site, calibration: Calibration | None, capability: Capability) -> Iterable[Candidate]: ...

The planner prices what it yields beside the dense candidate, which is always there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from effc.compiler.ir.calibration import Calibration
from effc.compiler.ir.errors import EffcError
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
    ``symbols``: for each kernel the values of its symbols.
    """

    pass_name: str
    kernels: tuple[tuple[KernelSpec, ...], ...]
    symbols: tuple[tuple[int, ...], ...]
    options: tuple[tuple[str, Any], ...] = ()
    error: float = 0.0

    @property
    def exact(self) -> bool:
        return self.error == 0.0


@dataclass(frozen=True)
class Capability:
    """What code generation can do on the target, for those that may not import it.

    ``supports(spec)``: None, or the reason why no kernel can be made. ``alternatives(spec)``: the spec under each schedule
    worth trying, the template's own choice first; ``preferred_multiple(dtype)``: sizes of which a kernel wastes nothing.
    """

    supports: Callable[[KernelSpec], str | None]
    alternatives: Callable[[KernelSpec], Iterable[KernelSpec]]
    preferred_multiple: Callable[[str], int]


Propose = Callable[[Site, Calibration | None, Capability], Iterable[Candidate]]
_PROPOSERS: dict[str, Propose] = {}


def proposes(pass_name: str) -> Callable[[Propose], Propose]:
    """Decorator: the function proposes candidates of the pass ``pass_name``. Two for one pass are a mistake."""

    def register(propose: Propose) -> Propose:
        known = _PROPOSERS.get(pass_name, propose)
        if pass_name == DENSE or (known.__module__, known.__qualname__) != (propose.__module__, propose.__qualname__):
            raise EffcError(f"two functions propose candidates of the pass '{pass_name}'; rename one")
        _PROPOSERS[pass_name] = propose
        return propose

    return register


def proposers() -> Mapping[str, Propose]:
    """The functions that imported modules registered, by pass name; ``effc.passes.registry()`` imports them all."""
    return dict(sorted(_PROPOSERS.items()))


def dense(site: Site, capability: Capability) -> Candidate:
    """The site as it is, under the schedules that its template offers; there is one at every site."""
    return Candidate(DENSE, (tuple(capability.alternatives(site.spec)),), (site.symbols,))


def candidates_at(
    site: Site, calibration: Calibration | None, capability: Capability, allowed: Callable[[str], bool]
) -> Iterator[Candidate]:
    """The dense candidate, then what each pass that is ``allowed`` (by name) proposes and the target supports."""
    yield dense(site, capability)
    for name, propose in proposers().items():
        if allowed(name):
            for candidate in propose(site, calibration, capability):
                if all(capability.supports(kernel[0]) is None for kernel in candidate.kernels):
                    yield candidate
