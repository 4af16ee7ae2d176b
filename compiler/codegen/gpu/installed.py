"""Which triton there is, without importing it."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

#: The oldest triton whose compiler reads what is written here.
OLDEST = (3, 3)


def triton_version() -> str | None:
    """Of the installed triton; None: there is none, or one that is too old."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        return None
    numbers = tuple(int(n) for n in re.findall(r"\d+", found)[:2])
    return found if numbers >= OLDEST else None
