"""A trained model on disk: a folder with LightGBM's text of each quantile, and ``card.json``, which says what it is and checks it.

The card holds the versions, the names of the features, the machines and data that the model was trained on, its errors on held-out
families, and size and digest of each text. Nothing is unpickled; a text that is not the one that the card names is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effc.compiler.ir.errors import ArtifactError
from effc.costmodel import features
from effc.costmodel.model.dataset import Dataset
from effc.costmodel.model.predictor import QUANTILES, Predictor, library

VERSION = 1
CARD = "card.json"
#: Bytes of a text at most: hundreds of times what training makes.
_LARGEST = 256 << 20


@dataclass(frozen=True)
class Model:
    """``card``: as the file has it."""

    predictor: Predictor
    card: dict[str, Any]


def save(folder: Path, predictor: Predictor, data: Dataset, errors: dict[str, Any]) -> None:
    """Write a model that was trained on ``data``; ``errors``: on held-out families, as `evaluation.Errors` has them."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {name: booster.model_to_string().encode() for name, booster in predictor.boosters.items()}
    card = {
        "version": VERSION,
        "features": {"version": features.VERSION, "columns": list(features.COLUMNS)},
        "machines": [machine.to_json() for machine in data.machines],
        "records": len(data),
        "families": dict(Counter(map(str, data.families))),
        "skipped": dict(data.skipped),
        "errors": errors,
        "texts": {name: {"bytes": len(text), "sha256": _digest(text)} for name, text in texts.items()},
    }
    for name, text in texts.items():
        _text_path(folder, name).write_bytes(text)
    (folder / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")


def load(folder: Path) -> Model:
    """The model in ``folder``. ArtifactError: it is not there, of another version, of other features, or was changed."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        version, known, texts = card["version"], card["features"], card["texts"]
        expected = {name: (int(texts[name]["bytes"]), str(texts[name]["sha256"])) for name in QUANTILES}
    except OSError as error:
        raise ArtifactError(f"there is no cost model in {folder}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / CARD} is no card of a cost model: {error!r}; train it again") from error
    if version != VERSION or known != {"version": features.VERSION, "columns": list(features.COLUMNS)}:
        raise ArtifactError(
            f"the cost model in {folder} was made for other features (version {version} with {known.get('version')}, this effc has "
            f"{VERSION} with {features.VERSION}): train it again from its traces"
        )
    boosters = {}
    for name, (size, digest) in expected.items():
        boosters[name] = _booster(_text_path(folder, name), size, digest)
    return Model(Predictor(boosters), card)


def _booster(path: Path, size: int, digest: str) -> Any:
    try:
        found = path.stat().st_size
        text = path.read_bytes() if found == size <= _LARGEST else b""
    except OSError as error:
        raise ArtifactError(f"{path}, a part of the cost model, cannot be read: {error.strerror}") from error
    if _digest(text) != digest:
        raise ArtifactError(f"{path} is not the text that its card names: it was changed or cut short; train it again")
    return library().Booster(model_str=text.decode())


def _text_path(folder: Path, name: str) -> Path:
    return folder / f"latency.{name}.txt"


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
