"""What was decided at each site, and why: for every candidate a verdict."""

from __future__ import annotations

import math

from effc.compiler.ir.candidate import DENSE
from effc.compiler.ir.considered import CHOSEN, NOT_FASTER, NOT_FINITE, NOT_SURE, Considered
from effc.compiler.ir.plan import Decision
from effc.costmodel.choices import Choice, Choices, Selection


def decisions(choices: Choices, selection: Selection) -> tuple[Decision, ...]:
    """Of each site."""
    return tuple(_decision(choices, site, number) for site, number in enumerate(selection.taken))


def _decision(choices: Choices, site: int, number: int) -> Decision:
    found = choices.at[site]
    choice, dense = found[number], found[0]
    own = tuple(alternatives[0].schedule for alternatives in choice.candidate.kernels)
    return Decision(
        site=choices.sites[site].name,
        pass_name=choice.candidate.pass_name,
        options=choice.candidate.options,
        kernels=choice.kernels,
        changed=own != tuple(k.schedule for k in choice.kernels),
        latency=choice.latency,
        dense=dense.latency,
        error=choice.candidate.error,
        reason=_reason(choices, site, number),
        considered=tuple(_considered(choices, site, other, number) for other in range(len(found))),
    )


def _considered(choices: Choices, site: int, number: int, chosen: int) -> Considered:
    choice = choices.at[site][number]
    candidate = choice.candidate
    return Considered(
        pass_name=candidate.pass_name,
        options=candidate.options,
        latency=choice.latency,
        error=candidate.error,
        saved=candidate.saved,
        schedules=math.prod(map(len, candidate.kernels)),
        measured=candidate.latency is not None and not choice.proposed,
        verdict=CHOSEN if number == chosen else _verdict(choices, site, number, chosen),
    )


def _verdict(choices: Choices, site: int, number: int, chosen: int) -> str:
    """Why a choice is not the one that was taken."""
    found = choices.at[site]
    choice, taken, dense = found[number], found[chosen], found[0]
    if number and not choices.may(site, number):
        if not math.isfinite(choice.candidate.error):
            return NOT_FINITE
        return NOT_FASTER if choice.latency.seconds >= dense.latency.seconds else NOT_SURE
    slower = choice.latency.seconds >= taken.latency.seconds
    worse = choice.candidate.error >= taken.candidate.error
    if slower and worse:
        return "no faster and no more exact than the chosen one"
    return "slower than the chosen one" if slower else "its error is better spent elsewhere, or over the budget"


def _reason(choices: Choices, site: int, number: int) -> str:
    found = choices.at[site]
    choice, dense, others = found[number], found[0], len(found) - 1
    if choice.candidate.pass_name != DENSE:
        return _gain(choice, dense)
    if others:
        surely = sum(choices.may(site, other) for other in range(1, len(found)))
        what = "is surely faster" if not surely else "that is surely faster fits the budget"
        return f"none of {others} other candidates {what}"
    schedules = [len(alternatives) for alternatives in choice.candidate.kernels]
    return "the only candidate" + (f", with {sum(schedules)} schedules" if max(schedules) > 1 else "")


def _gain(choice: Choice, dense: Choice) -> str:
    saved = dense.latency.seconds - choice.latency.seconds
    if saved > 0:
        return f"saves {1e6 * saved:.3g} of {1e6 * dense.latency.seconds:.3g} us"
    return f"saves {choice.candidate.saved / 1e6:.3g} MB"
