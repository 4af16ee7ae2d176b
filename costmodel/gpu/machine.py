"""``Gpu``: what a GPU kernel is compiled for, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """``capability``: 90 for sm_90; ``processors``: streaming multiprocessors; ``shared_bytes``: that one block may have; ``tf32``,
    ``tf32_convolutions``: whether products, and convolutions, of float32 round their factors; ``descriptors``: whether tiles are copied
    by them. ``model``: of the device that was timed, "" where code was only compiled.
    """

    capability: int
    processors: int
    shared_bytes: int
    tf32: bool = False
    tf32_convolutions: bool = False
    descriptors: bool = False
    model: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Gpu:
        """KeyError, TypeError or ValueError where ``data`` is not what ``to_json`` wrote."""
        numbers = {name: int(data[name]) for name in ("capability", "processors", "shared_bytes")}
        if min(numbers.values()) < 1:
            raise ValueError("a GPU of nothing")
        flags = {name: bool(data[name]) for name in ("tf32", "tf32_convolutions", "descriptors")}
        return Gpu(
            numbers["capability"],
            numbers["processors"],
            numbers["shared_bytes"],
            flags["tf32"],
            flags["tf32_convolutions"],
            flags["descriptors"],
            str(data["model"]),
        )
