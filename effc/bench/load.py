"""What else runs on the machine: its load averages, and the processes that use it. Linux's /proc."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

#: Shares of a core below this are not worth a mention.
_NOTICED = 0.05


@dataclass(frozen=True)
class Load:
    """``average``: the system's over 1, 5 and 15 minutes. ``processes``: others, with the share of a core that each used."""

    average: tuple[float, float, float]
    processes: tuple[tuple[str, float], ...]


def observe(seconds: float = 0.5) -> Load:
    """Watch for that long; this process should be idle meanwhile."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    per_second = os.sysconf("SC_CLK_TCK")
    shares = [
        (name, (ticks - before[pid][1]) / per_second / seconds)
        for pid, (name, ticks) in after.items()
        if pid in before and pid != os.getpid()
    ]
    busy = sorted((s for s in shares if s[1] >= _NOTICED), key=lambda s: -s[1])
    return Load(os.getloadavg(), tuple(busy))


def _ticks() -> dict[int, tuple[str, int]]:
    """Name and processor time (clock ticks) of each process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
        except OSError:  # it has ended
            continue
        name, _, rest = text[text.index("(") + 1 :].rpartition(") ")  # a name may hold blanks and brackets
        fields = rest.split()
        found[int(folder.name)] = (name, int(fields[11]) + int(fields[12]))  # utime, stime: proc(5)
    return found
