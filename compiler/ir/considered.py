"""``Considered``: a candidate that the planner looked at, and what it made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.compression import compressions

#: The verdict on the candidate that runs.
CHOSEN = "chosen"
#: On those that cannot be taken, whatever else is.
NOT_FINITE, NOT_FASTER, NOT_SURE = "its outputs are not finite", "not faster than dense", "not surely faster than dense"
RULED_OUT = frozenset((NOT_FINITE, NOT_FASTER, NOT_SURE))


@dataclass(frozen=True)
class Considered:
    """``pass_name``, ``options``, ``error``, ``saved``: as in `Candidate`. ``schedules``: of how many the ``latency`` is the best.
    ``measured``: whether that was taken in a run; else it is predicted. ``verdict``: `CHOSEN`, or why not.
    """

    pass_name: str
    options: tuple[tuple[str, Any], ...]
    latency: Latency
    error: float
    saved: int
    schedules: int
    measured: bool
    verdict: str

    @property
    def label(self) -> str:
        """For people."""
        return label(self.pass_name, self.options)

    def judged(self, verdict: str) -> Considered:
        """With another verdict."""
        return replace(self, verdict=verdict)

    def to_json(self) -> dict[str, Any]:
        return {
            "pass": self.pass_name,
            "options": dict(self.options),
            "latency": self.latency.to_json(),
            "error": self.error,
            "saved": self.saved,
            "schedules": self.schedules,
            "measured": self.measured,
            "verdict": self.verdict,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Considered:
        """What ``to_json`` wrote; KeyError, TypeError or ValueError where ``data`` is something else."""
        return Considered(
            pass_name=data["pass"],
            options=tuple(sorted(data["options"].items())),
            latency=Latency.from_json(data["latency"]),
            error=data["error"],
            saved=data["saved"],
            schedules=data["schedules"],
            measured=data["measured"],
            verdict=data["verdict"],
        )


def label(pass_name: str, options: Sequence[tuple[str, Any]]) -> str:
    """``quantize weights=int4 smoothing=awq``: a pass, and those of its options that are not what it takes by itself."""
    known = compressions().get(pass_name)
    usual = {f.name: f.default for f in fields(known) if f.default is not MISSING} if known is not None else {}
    said = [f"{name}={value}" for name, value in options if name not in usual or value != usual[name]]
    return " ".join([pass_name, *said])
