"""The models on which effc is tested and measured: plain torch, random weights at a sane scale, each full and small.

>>> case = build("resnet18", small=True)
>>> case.module(*case.inputs(seed=0, step=0))
"""

from __future__ import annotations

import torch

from . import language, sequence, unet, vision, vision_transformers
from .entry import Case, Entry

#: Every model by name, in the order in which tables show them.
ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for group in (sequence.ENTRIES, vision.ENTRIES, vision_transformers.ENTRIES, language.ENTRIES, unet.ENTRIES)
    for entry in group
}


def build(name: str, small: bool) -> Case:
    """The model with weights that are the same in every process; KeyError lists the names."""
    if name not in ENTRIES:
        raise KeyError(f"no model {name!r}; there are: {', '.join(ENTRIES)}")
    with torch.random.fork_rng():
        torch.manual_seed(20)
        return ENTRIES[name].build(small)


__all__ = ["ENTRIES", "Case", "Entry", "build"]
