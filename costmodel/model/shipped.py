"""The models that come with effc, and which of them is nearest to a machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.resources import files as resources
from importlib.resources.abc import Traversable
from pathlib import Path

from effc.compiler.ir.errors import ArtifactError, OptionError
from effc.costmodel.features import machine
from effc.costmodel.features.core import Core
from effc.costmodel.hardware import Hardware
from effc.costmodel.model import files

#: How much each octave counts: of vectors and what starts in a cycle, which make other code; of caches; of speeds.
_CODE, _CACHE, _SPEED = 4.0, 0.5, 0.5
#: An instruction set that only one of two machines has.
_SET = 0.5


def shipped() -> Mapping[str, Traversable]:
    """Folders of models, by name."""
    place = resources("effc.costmodel") / "shipped"
    return {folder.name: folder for folder in sorted(place.iterdir(), key=lambda f: f.name)} if place.is_dir() else {}


def named(name: str) -> Traversable:
    """The folder ``name``, or the shipped model of that name. OptionError: it is neither."""
    found = shipped().get(name)
    if found is not None:
        return found
    folder = Path(name)
    if not folder.is_dir() and "/" not in name:
        raise OptionError(
            f"there is no cost model '{name}': it is no folder, and those shipped are {', '.join(shipped()) or 'none'}"
        )
    return folder


def nearest(hardware: Hardware) -> tuple[str, float] | None:
    """Name of the shipped model whose machine is nearest, and its distance; None where none can be read."""
    found = []
    for name, folder in shipped().items():
        try:
            _, machines = files.read_card(folder)
        except ArtifactError:
            continue  # of another version: `effc costmodel show` says so
        found += [(distance(hardware, other), name) for other in machines]
    return min(((name, far) for far, name in found), key=lambda pair: pair[1], default=None)


def distance(a: Hardware, b: Hardware) -> float:
    """0 for the same kind of machine; from about 1 on other code is best, or it runs at another pace."""
    cores = Core.of(a), Core.of(b)
    sets = sum(machine.usable(a, name) != machine.usable(b, name) for name in machine.SETS)
    octaves = [
        (_CODE, a.vector_bytes, b.vector_bytes),
        (_CODE, cores[0].starts, cores[1].starts),
        *((_CACHE, x, y) for x, y in ((a.l1, b.l1), (a.l2, b.l2), (a.l3, b.l3))),
        *((_SPEED, x, y) for x, y in ((a.one.flops, b.one.flops), (a.one.bandwidth, b.one.bandwidth))),
    ]
    return _SET * sets + sum(w * abs(math.log2(x / y)) if x and y else w for w, x, y in octaves if x != y)
