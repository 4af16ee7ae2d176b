"""``Plan``: which candidate runs at each site, and why. Data, but for the compressed weights; `effc.planning.plans` keeps it in a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from effc.compiler.ir.budgets import Budgets
from effc.compiler.ir.candidate import DENSE, Latency
from effc.compiler.ir.considered import CHOSEN, RULED_OUT, Considered, label
from effc.compiler.ir.spec import KernelSpec, Schedule

#: Metrics that have a name; a callable ``(reference_outputs, outputs, batch) -> float`` serves too.
METRICS = ("relative_l2", "top1_disagreement", "kl", "perplexity")


@dataclass(frozen=True)
class Decision:
    """What runs at ``site``. ``kernels``: the kernels with the schedules chosen; ``changed``: whether one of these is not what
    the template takes by itself. ``dense``: latency of the site as it was; ``error``: estimated, 0 is exact. ``considered``: all
    candidates, this one among them.
    """

    site: str
    pass_name: str
    options: tuple[tuple[str, Any], ...]
    kernels: tuple[KernelSpec, ...]
    changed: bool
    latency: Latency
    dense: Latency
    error: float
    reason: str
    considered: tuple[Considered, ...] = ()

    @property
    def chosen(self) -> str:
        """The candidate, for people."""
        return label(self.pass_name, self.options)

    def dropped(self, kernel: KernelSpec, reason: str) -> Decision:
        """The dense ``kernel`` under its own schedule instead, because of ``reason``."""
        others = tuple(
            c.judged(CHOSEN) if c.pass_name == DENSE else c if c.verdict in RULED_OUT else c.judged(reason)
            for c in self.considered
        )
        return replace(
            self,
            pass_name=DENSE,
            options=(),
            kernels=(kernel,),
            changed=False,
            latency=self.dense,
            error=0.0,
            reason=reason,
            considered=others,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "site": self.site,
            "pass": self.pass_name,
            "options": dict(self.options),
            "kernels": [k.to_json() for k in self.kernels],
            "changed": self.changed,
            "latency": self.latency.to_json(),
            "dense": self.dense.to_json(),
            "error": self.error,
            "reason": self.reason,
            "considered": [c.to_json() for c in self.considered],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Decision:
        return Decision(
            site=data["site"],
            pass_name=data["pass"],
            options=tuple(sorted(data["options"].items())),
            kernels=tuple(KernelSpec.from_json(k) for k in data["kernels"]),
            changed=data["changed"],
            latency=Latency.from_json(data["latency"]),
            dense=Latency.from_json(data["dense"]),
            error=data["error"],
            reason=data["reason"],
            considered=tuple(Considered.from_json(c) for c in data["considered"]),
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """``model``, ``calibration``: digests of what it was made from; ``hardware``: key of the CPU that it was made for.

    ``budgets``: what it was to keep, by ``metric``; ``measured``: the metric with this plan on the calibration's batches held out (where
    none are, on all, by which weights were compressed too), None where it was not run; ``margin``: by which its mean over other batches of
    their source may differ, with a confidence of 95 %, None where there were too few to tell; both together keep the budget. ``seconds``:
    of a call of the whole model, measured: with the plan and as it is, in turn; None where it was not timed. ``size``: bytes of all
    parameters and buffers, as the plan stores them.
    ``weights``: the compressed forms of parameters, by name (`compiler.compress.stored`); their ``digest`` stands for them. Two plans are
    equal where their content is.
    """

    model: str
    calibration: str
    hardware: str
    metric: str
    budgets: Budgets
    measured: float | None
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...] = ()
    margin: float | None = None
    seconds: tuple[float, float] | None = None
    size: int | None = None
    weights: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether every decision leaves the model's function as it is."""
        return all(d.error == 0.0 for d in self.decisions)

    @property
    def latency(self) -> Latency:
        """Predicted for all sites, one after the other."""
        return sum((d.latency for d in self.decisions), Latency(0.0))

    @property
    def saved(self) -> float:
        """Seconds that its decisions are predicted to save."""
        return sum(d.dense.seconds - d.latency.seconds for d in self.decisions)

    @property
    def expected(self) -> float | None:
        """Predicted seconds of a call of the whole model: as it is, less what decisions save, and no less than its kernels take, which may
        have been timed when the machine was faster or slower; None where it was not timed.
        """
        return None if self.seconds is None else max(self.seconds[1] - self.saved, self.latency.seconds)

    def found(self, measured: float, margin: float | None) -> Plan:
        """With what its verification gave; what is not finite is not kept."""
        kept = [value if value is not None and math.isfinite(value) else None for value in (measured, margin)]
        return replace(self, measured=kept[0], margin=kept[1])

    def schedules(self) -> dict[str, Schedule]:
        """The schedules that differ from what the templates take, by ``KernelSpec.key()``."""
        return {k.key(): k.schedule for d in self.decisions if d.changed for k in d.kernels}

    # -- content ----------------------------------------------------------------------------------------------------
    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "calibration": self.calibration,
            "hardware": self.hardware,
            "metric": self.metric,
            "budgets": self.budgets.to_json(),
            "measured": self.measured,
            "margin": self.margin,
            "decisions": [d.to_json() for d in self.decisions],
            "notes": list(self.notes),
            "seconds": None if self.seconds is None else list(self.seconds),
            "size": self.size,
            "weights": {name: weight.digest for name, weight in sorted(self.weights.items())},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], weights: Mapping[str, Any] | None = None) -> Plan:
        """The plan that ``to_json`` wrote, with its ``weights``; KeyError, TypeError or ValueError where ``data`` is not one."""
        held = dict(weights or {})
        if data["weights"] != {name: weight.digest for name, weight in sorted(held.items())}:
            raise ValueError("its compressed weights are not with it")
        return Plan(
            model=data["model"],
            calibration=data["calibration"],
            hardware=data["hardware"],
            metric=data["metric"],
            budgets=Budgets.from_json(data["budgets"]),
            measured=data["measured"],
            decisions=tuple(Decision.from_json(d) for d in data["decisions"]),
            notes=tuple(data["notes"]),
            margin=data["margin"],
            seconds=None if data["seconds"] is None else (float(data["seconds"][0]), float(data["seconds"][1])),
            size=data["size"],
            weights=held,
        )

    @cached_property
    def digest(self) -> str:
        """A hash of the content."""
        return _digest(self.to_json())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        lines = [f"  {d.site}: {d.chosen}, {1e6 * d.latency.seconds:.3g} us, {d.reason}" for d in self.decisions]
        return "\n".join([*self.summary(), *lines, *(f"note: {n}" for n in self.notes)])

    def summary(self) -> list[str]:
        """Lines about the whole model."""
        measured = "not measured" if self.measured is None else f"measured {self.measured:.3g}"
        measured += "" if self.margin is None else f" ± {self.margin:.1g}"
        head = f"plan of {len(self.decisions)} sites for {self.budgets.describe(self.metric)} ({measured})"
        kernels = f"{1e3 * self.latency.seconds:.3g} ms of kernels"
        if self.seconds is None or self.expected is None:
            found = [head, f"  predicted: {kernels}"]
        else:
            planned, exact, expected = (1e3 * s for s in (*self.seconds, self.expected))
            times = (
                f"a call takes {planned:.3g} ms (predicted {expected:.3g}, of which {kernels}), {exact:.3g} ms as it is"
            )
            found = [head, f"  {times}"]
        return [*found, f"  weights take {self.size / 1e6:.3g} MB"] if self.size is not None else found


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
