"""Human judgments of how similar two words are: WordSim-353 (Finkelstein et al., 2002) and SimLex-999 (Hill et al., 2015).

Both lie in the package ``gensim``, of which nothing else is used: ``make models`` installs it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

FILES = ("wordsim353.tsv", "simlex999.txt")


def installed() -> bool:
    return find_spec("gensim") is not None


def load(file: str) -> tuple[list[str], list[str], Tensor]:
    """First and second words of the pairs, and the mean judgment of each, ``[pairs]``; ``file``: one of `FILES`."""
    package = find_spec("gensim")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the judgments are not installed; `make models` installs them")
    path = Path(package.submodule_search_locations[0]) / "test" / "test_data" / file
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    first, second, judgments = zip(*rows, strict=True)
    return list(first), list(second), torch.tensor([float(j) for j in judgments])


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors, ties at their mean rank."""
    return float(torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    found: Tensor = (last - (counts - 1) / 2)[inverse]
    return found
