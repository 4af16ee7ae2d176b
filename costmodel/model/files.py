"""A trained model on disk: a folder with LightGBM's text of each target, and ``card.json``, which says what it is and checks it.

The card holds the versions, the names of the features, the machines and data that the model was trained on, its errors on what was held
out, and size and digest of each text. Nothing is unpickled; a text that is not the one that the card names is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from effc.compiler.ir.errors import ArtifactError
from effc.costmodel import features
from effc.costmodel.hardware import Hardware
from effc.costmodel.model.dataset import Dataset
from effc.costmodel.model.predictor import Predictor
from effc.costmodel.model.targets import CORRECTION, QUANTILES, TARGETS

VERSION = 2
CARD = "card.json"
#: Bytes of a text at most: tens of times what training makes; and of a card.
_LARGEST, _LARGEST_CARD = 64 << 20, 4 << 20


@dataclass(frozen=True)
class Model:
    """``card``: as the file has it; ``machines``: that it was trained on."""

    predictor: Predictor
    card: Mapping[str, Any]
    machines: tuple[Hardware, ...]


def save(folder: Path, predictor: Predictor, data: Dataset, told: Mapping[str, Any]) -> None:
    """Write a model that was trained on ``data``. ``told``: what else the card says, as JSON. ArtifactError: it cannot be written."""
    texts = {name: text.encode() for name, text in predictor.texts.items()}
    card = {
        "version": VERSION,
        "features": {"version": features.VERSION, "columns": list(features.COLUMNS)},
        "machines": [machine.to_json() for machine in data.machines],
        "records": len(data),
        "families": dict(Counter(map(str, data.families))),
        "skipped": dict(data.skipped),
        "widening": predictor.widening,
        **told,
        "texts": {name: {"bytes": len(text), "sha256": _digest(text)} for name, text in texts.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / _file(name)).write_bytes(text)
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in card.items())
        (folder / CARD).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"the cost model cannot be written to {folder}: {error.strerror}") from error


def load(folder: Traversable) -> Model:
    """The model in ``folder``. ArtifactError: it is not there, of another version, of other features, or was changed."""
    card, machines = read_card(folder)
    try:
        widening = float(card["widening"])
        expected = {str(name): (int(t["bytes"]), str(t["sha256"])) for name, t in card["texts"].items()}
        if not 0 < widening < float("inf") or not QUANTILES.keys() <= expected.keys() <= {*TARGETS, CORRECTION}:
            raise ValueError("no texts of a model's targets")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _no_card(folder, error) from error
    texts = {name: _text(folder / _file(name), size, digest) for name, (size, digest) in expected.items()}
    try:
        return Model(Predictor.of(texts, widening), card, machines)
    except ValueError as error:
        raise ArtifactError(f"the cost model in {folder} cannot be used: {error}; train it again") from error


def read_card(folder: Traversable) -> tuple[Mapping[str, Any], tuple[Hardware, ...]]:
    """The card alone, and the machines that it names; ArtifactError as `load`."""
    try:
        data = (folder / CARD).read_bytes()
        if len(data) > _LARGEST_CARD:
            raise ValueError(f"{len(data)} bytes")
        card = json.loads(data)
        version, known = card["version"], card["features"]
        machines = tuple(Hardware.from_json(m) for m in card["machines"]) if version == VERSION else ()
    except OSError as error:
        raise ArtifactError(f"there is no cost model in {folder}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise _no_card(folder, error) from error
    if version != VERSION or known != {"version": features.VERSION, "columns": list(features.COLUMNS)}:
        made = known.get("version") if isinstance(known, dict) else None
        raise ArtifactError(
            f"the cost model in {folder} was made for other features (version {version} with {made}, this effc has "
            f"{VERSION} with {features.VERSION}): train it again from its traces"
        )
    return card, machines


def _no_card(folder: Traversable, error: Exception) -> ArtifactError:
    return ArtifactError(f"{folder / CARD} is no card of a cost model: {error!r}; train it again")


def _text(path: Traversable, size: int, digest: str) -> str:
    try:
        text = path.read_bytes() if size <= _LARGEST else b""
    except OSError as error:
        raise ArtifactError(f"{path}, a part of the cost model, cannot be read: {error.strerror}") from error
    if len(text) != size or _digest(text) != digest:
        raise ArtifactError(f"{path} is not the text that its card names: it was changed or cut short; train it again")
    return text.decode()


def _file(name: str) -> str:
    return f"{name}.txt"


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
