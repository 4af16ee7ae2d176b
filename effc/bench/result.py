"""What a measurement found, and its JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from effc.bench.load import Load
from effc.bench.spread import Spread, geometric_mean
from effc.bench.systems import ALSO_OURS, OURS

#: Raised when a field changes its meaning or goes.
FORMAT = 2


@dataclass(frozen=True)
class Outcome:
    """One system on one subject. ``status``: ``ok``, ``absent`` or ``failed``, with the reason; the rest is of ``ok``.

    ``seconds``: of a call, a sample a round. ``first_call``: seconds, compilation included. ``error``: relative L2 to float64.
    ``memory_first``, ``memory``: bytes resident at most up to the first result, and in the rounds. ``share``: of the roofline.
    """

    system: str
    status: str
    reason: str = ""
    seconds: tuple[float, ...] = ()
    latency: Spread | None = None
    first_call: float | None = None
    error: float | None = None
    memory_first: int | None = None
    memory: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class Measurement:
    """One subject. ``flops``, ``bytes``: the work of a call; ``peak`` (FLOP/s in the dtype) and ``bandwidth`` (bytes/s): the machine's
    limits, measured in the same rounds; ``floor``: seconds, their roofline; ``bound``: what it is made of, as ``Work.bound`` says.
    """

    name: str
    flops: int
    bytes: int
    peak: Spread
    bandwidth: Spread
    floor: float
    bound: str
    outcomes: tuple[Outcome, ...]

    def of(self, system: str) -> Outcome | None:
        """That system's, where it ran."""
        return next((o for o in self.outcomes if o.system == system and o.status == "ok"), None)

    def best_rival(self) -> Outcome | None:
        """The fastest that is not ours."""
        rivals = [o for o in self.outcomes if o.latency is not None and o.system not in (OURS, *ALSO_OURS)]
        return min(rivals, key=lambda o: o.latency.median if o.latency else 0.0, default=None)

    def speedup(self, system: str, over: str) -> Spread | None:
        """Times faster than ``over``, round by round; None where one of them did not run."""
        fast, slow = self.of(system), self.of(over)
        return None if fast is None or slow is None else Spread.of_ratios(slow.seconds, fast.seconds)

    def over_best_rival(self) -> Spread | None:
        """Ours."""
        rival = self.best_rival()
        return None if rival is None else self.speedup(OURS, rival.system)


@dataclass(frozen=True)
class Report:
    """``host``: the machine and the versions of what ran; ``settings``: what was asked for; loads at start and end."""

    started: str
    host: dict[str, Any]
    settings: dict[str, Any]
    load_start: Load
    load_end: Load
    measurements: tuple[Measurement, ...]

    def mean_over_best_rival(self) -> float | None:
        """Geometric mean over all subjects on which ours and a rival ran."""
        ratios = [s.median for m in self.measurements if (s := m.over_best_rival()) is not None]
        return geometric_mean(ratios) if ratios else None

    def to_json(self) -> dict[str, Any]:
        """As the dataclasses are, with ``format``, and with what is derived: the best rival, and ours over it and over eager."""
        data = {"format": FORMAT, **asdict(self)}
        data["over_best_rival"] = self.mean_over_best_rival()
        for plain, measurement in zip(data["measurements"], self.measurements, strict=True):
            rival = measurement.best_rival()
            plain["best_rival"] = rival.system if rival else None
            for key, ratio in (
                ("over_best_rival", measurement.over_best_rival()),
                ("over_eager", measurement.speedup(OURS, "eager")),
            ):
                plain[key] = asdict(ratio) if ratio else None
        return data

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")
