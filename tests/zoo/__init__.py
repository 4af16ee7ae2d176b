"""The models that the tests share: those of ``effc bench``, which has their sizes and sources."""

from __future__ import annotations

from effc.bench.models import ENTRIES, Case, Entry, build

__all__ = ["ENTRIES", "Case", "Entry", "build"]
