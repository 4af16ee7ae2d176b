"""Which triton there is, without importing it."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from effc.compiler.codegen.gpu.hardware import FIRST_DESCRIBED

#: The oldest triton whose compiler reads what is written here.
OLDEST = (3, 3)
#: Versions of triton whose descriptors of matrices are tested.
_DESCRIBED_BY = ((3, 6),)


def triton_version() -> str | None:
    """Of the installed triton; None: there is none, or one that is too old."""
    found = _installed()
    return found if found is not None and _numbers(found) >= OLDEST else None


def reads_descriptors(capability: int) -> bool:
    """Whether the installed triton copies by descriptors on such a GPU, as they are written here: its own form of them changes."""
    found = _installed()
    return capability >= FIRST_DESCRIBED and found is not None and _numbers(found) in _DESCRIBED_BY


def triton_reason() -> str | None:
    """Why the installed triton compiles nothing, and what to do; None where it does."""
    found = _installed()
    if found is not None and _numbers(found) >= OLDEST:
        return None
    needed = ".".join(map(str, OLDEST))
    state = "is not installed" if found is None else f"is {found} here"
    return f"GPU kernels are compiled by triton {needed} or newer, which {state}: pip install 'effc[gpu]'"


def _installed() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])
