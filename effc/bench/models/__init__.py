"""The models on which effc is tested and measured: plain torch, random weights at a sane scale, each full and small.

>>> case = build("resnet18", small=True)
>>> case.module(*case.inputs(seed=0, step=0))
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import convfirst, language, sequence, unet, vision, vision_transformers
from .blocks import BLOCKS, build_block
from .entry import Case, Entry

#: Every architecture by name, in the order in which tables show them.
ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for group in (
        sequence.ENTRIES,
        vision.ENTRIES,
        vision_transformers.ENTRIES,
        convfirst.ENTRIES,
        language.ENTRIES,
        unet.ENTRIES,
    )
    for entry in group
}


def _llama_1b(name: str, build: Callable[[bool, language.LlamaSize, str], Case]) -> Entry:
    return Entry(name, lambda small: build(small, language.LLAMA_1B, name))


#: More sizes of the same architectures, which only measurements need.
SIZES: dict[str, Entry] = {
    "resnet50_b8": Entry("resnet50_b8", lambda small: vision.resnet50(small, batch=8)),
    "llama_1b_prefill": _llama_1b("llama_1b_prefill", language.llama_prefill),
    "llama_1b_decode": _llama_1b("llama_1b_decode", language.llama_decode),
    "vit_small": Entry("vit_small", lambda small: vision_transformers.vit(small, 384, 6)),
}
#: What ``effc bench`` measures unless told otherwise.
MEASURED: tuple[str, ...] = (
    "resnet50", "resnet50_b8", "mobilenet_v2", "convnext_tiny", "bert_base", "minilm_l6", "vit_small", "vit_base",
    "gpt2_prefill", "llama_prefill", "llama_decode", "unet3d", "mlp",
)  # fmt: skip


def build(name: str, small: bool) -> Case:
    """The model with weights that are the same in every process; KeyError lists the names."""
    known = ENTRIES | SIZES
    if name not in known:
        raise KeyError(f"no model {name!r}; there are: {', '.join(known)}")
    with torch.random.fork_rng():
        torch.manual_seed(20)
        return known[name].build(small)


__all__ = ["BLOCKS", "ENTRIES", "MEASURED", "SIZES", "Case", "Entry", "build", "build_block"]
