"""A plan with the schedules that measuring found: the kernels as the plan makes them, each against its own alternatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from effc.collecting.found import Catcher
from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.plan import Decision, Plan
from effc.compiler.ir.site import Site
from effc.planning.autotune import Tuned, Tuner
from effc.planning.trial import Compiled, Trial
from effc.reporting.decided import kernels_at


def with_schedules(plan: Plan, trial: Trial, compiled: Compiled, tuner: Tuner) -> Plan:
    """``plan``, which ``compiled`` is compiled by, with what ``tuner`` finds; the same object where that is nothing new."""
    catcher = Catcher()
    with compiled.clock.running(catcher):
        trial.run(compiled.call, 0)
    trial.time(compiled)
    seconds: dict[str, float] = {}
    for site, latency in zip(compiled.sites, compiled.latencies(), strict=True):
        seconds[site.spec.key()] = seconds.get(site.spec.key(), 0.0) + latency.seconds
    tuner.tune((kernel, seconds[kernel.spec.key()]) for kernel in catcher.found.values())
    found = {tuned.before.key(): tuned for tuned in tuner.tuned}
    if not found:
        return plan
    places = kernels_at(plan.decisions, compiled.sites)
    return replace(plan, decisions=tuple(_retimed(d, places[d.site], found) for d in plan.decisions))


def note(tuner: Tuner) -> str:
    """For the plan: what was measured."""
    noisy = (
        f"; of {tuner.noisy} kernels nothing could be told, because the machine was not quiet" if tuner.noisy else ""
    )
    return (
        f"autotune: {tuner.measured} schedules were measured, {tuner.known} were known; {len(tuner.tuned)} kernels have another schedule"
        f"{noisy}"
    )


def _retimed(decision: Decision, sites: Sequence[Site], found: Mapping[str, Tuned]) -> Decision:
    tuned = [found[site.spec.key()] for site in sites if site.spec.key() in found]
    if not tuned:
        return decision
    kernels = tuple(found[s.spec.key()].after if s.spec.key() in found else s.spec for s in sites)
    saved = sum(t.seconds[0] - t.seconds[1] for t in tuned)
    latency = Latency(max(decision.latency.seconds - saved, 0.0), decision.latency.uncertainty)
    reason = "; ".join([decision.reason, *map(str, tuned)])
    return replace(decision, kernels=kernels, changed=True, latency=latency, reason=reason)
