"""What all plans of one model by one set of options stand on, whatever their budgets: the exact model, and what there is to choose from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

from effc.compiler.codegen.cpu import schedules
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.budgets import Budgets
from effc.compiler.ir.candidate import Alternatives, dense
from effc.compiler.ir.options import Options
from effc.compiler.ir.site import Site
from effc.costmodel.hardware import Hardware
from effc.costmodel.planner import ESTIMATED
from effc.planning.offers import Offers, offers
from effc.planning.pricing import Pricing, pricing
from effc.planning.trial import Compiled, Trial
from effc.planning.variants import offered
from effc.runtime.cache import Cache
from effc.speed import host_hardware

#: Estimated error of one weight, in budgets, up to which it is looked at: estimates may say too much, hardly four times.
_REACH = 4.0


class Groundwork:
    """Each part is made when it is first asked for."""

    def __init__(self, trial: Trial, options: Options) -> None:
        self.trial, self.options = trial, options
        self._offers: dict[tuple[bool, bool], tuple[float, Offers]] = {}

    @cached_property
    def plain(self) -> Compiled:
        """The exact model, by the schedules that templates take."""
        return self.trial.compile(self.options.exact())

    @cached_property
    def hardware(self) -> Hardware:
        return host_hardware(Cache(self.options.cache_dir))

    @cached_property
    def pricing(self) -> Pricing:
        return pricing(self.options)

    @cached_property
    def named(self) -> Mapping[str, Site]:
        """Sites of the exact model."""
        return {site.name: site for site in self.plain.sites}

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each parameter, by any of its names."""
        named = self.trial.model.named_parameters(remove_duplicate=False)
        return {name: p.numel() * p.element_size() for name, p in named}

    def offers(self, budgets: Budgets, metric: str) -> Offers:
        """Candidates for plans within ``budgets``, the error by ``metric``; those made for a larger budget serve a smaller one
        too: they hold all that it needs.
        """
        key = budgets.spends, budgets.size is not None
        within = budgets.accuracy is not None and metric == ESTIMATED
        most = _REACH * (budgets.accuracy or 0.0) if within else math.inf
        known = self._offers.get(key)
        if known is None or known[0] < most:
            known = self._offers[key] = most, self._offered(*key, most)
        return known[1]

    def _offered(self, spends: bool, smaller: bool, most: float) -> Offers:
        variants = offered(self.options, self.trial) if spends else []
        if variants:
            return offers(self.trial, self.plain, self.options, variants, self.pricing, smaller=smaller, most=most)
        return Offers({s.name: [dense(s, host_alternatives())] for s in self.plain.sites}, {})


def host_alternatives() -> Alternatives:
    """The schedules that code generation has for this CPU."""
    target = Target.host()
    return lambda spec: schedules.alternatives(spec, target)
