"""What trees predict of the code of GPU kernels that were not compiled, and the model of it on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.errors import ArtifactError
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.features.scale import counts
from effc.costmodel.gpu import features
from effc.costmodel.gpu.dataset import GpuData
from effc.costmodel.gpu.machine import Gpu
from effc.costmodel.model import folder
from effc.costmodel.model.trees import Forest

VERSION = 1
KIND = "gpu"
#: Facts that are learned as the logarithm of the number over the counted one; and as a chance.
COUNTED, CHANCES = ("registers", "shared", "instructions"), ("spills", "refused")
#: Of the counted facts, their columns among the features.
_COLUMNS = {name: features.COLUMNS.index(f"log_{name}") for name in COUNTED}
#: Chance from which on a kernel is expected to spill, or to be refused.
_EXPECTED = 0.9

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CodePredictor:
    """``texts``: LightGBM's of each fact, `COUNTED` and `CHANCES`; ``forests``: read from them."""

    texts: Mapping[str, str]
    forests: Mapping[str, Forest]

    @staticmethod
    def of(texts: Mapping[str, str]) -> CodePredictor:
        """ValueError: a text is not one of trees over our features, or those of a fact are not there."""
        if texts.keys() != {*COUNTED, *CHANCES}:
            raise ValueError(
                f"trees for {', '.join(texts) or 'nothing'}, and not for {', '.join((*COUNTED, *CHANCES))}"
            )
        forests = {name: Forest.parse(text) for name, text in texts.items()}
        for name, forest in forests.items():
            if forest.features != features.COLUMNS:
                raise ValueError(f"{name}: trees of other features")
        return CodePredictor(texts, forests)

    def facts(self, rows: NDArray[np.float32]) -> dict[str, Array]:
        """Of each row of features: ``registers``, ``shared``, ``instructions``; the chances of ``spills``, and of being ``refused``."""
        found = {name: forest.predict(rows) for name, forest in self.forests.items()}
        for name in COUNTED:
            found[name] = counted(rows, name) * np.exp2(found[name])
        for name in CHANCES:
            found[name] = 1 / (1 + np.exp(-found[name]))
        return found

    def expected_to_fail(self, kernels: Iterable[KernelSpec], gpu: Gpu) -> list[bool]:
        """Whether each is all but certain to spill registers, or to be refused. ``kernels``: as `features.matrix` takes them."""
        found = self.facts(features.matrix(kernels, gpu))
        chance = np.max([found[name] for name in CHANCES], axis=0)
        return [bool(c >= _EXPECTED) for c in chance]


def counted(rows: NDArray[np.float32], name: str) -> Array:
    """What `features` counts of a fact."""
    return counts(rows, _COLUMNS[name])


def save(place: Path, predictor: CodePredictor, data: GpuData, told: Mapping[str, Any]) -> None:
    """Write a model that was trained on ``data``. ``told``: what else the card says, as JSON. ArtifactError: it cannot be written."""
    card = {
        **_identity(),
        "gpus": [gpu.to_json() for gpu in data.gpus],
        "records": len(data),
        "families": dict(Counter(map(str, data.families))),
        "skipped": dict(data.skipped),
        **told,
    }
    folder.save(place, predictor.texts, card)


def load(place: Traversable) -> tuple[CodePredictor, Mapping[str, Any]]:
    """The model in ``place``, and its card, which says of what records it was made. ArtifactError: it is not there, of another version, of
    other features, incomplete, or was changed.
    """
    card = folder.card_of(place)
    if {name: card.get(name) for name in _identity()} != _identity():
        raise ArtifactError(f"the model in {place} is none of GPU code, or was made for other features: train it again")
    try:
        for gpu in card["gpus"]:
            Gpu.from_json(gpu)
        for name, kind in (("records", int), ("families", dict), ("errors", dict)):
            if not isinstance(card[name], kind):
                raise TypeError(f"{name}: {card[name]!r}")
        return CodePredictor.of(folder.texts_of(place, card)), card
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise folder.no_card(place, error) from error


def _identity() -> dict[str, Any]:
    """By which a card is known to be of this kind and version."""
    return {
        "kind": KIND,
        "version": VERSION,
        "features": {"version": features.VERSION, "columns": list(features.COLUMNS)},
    }
