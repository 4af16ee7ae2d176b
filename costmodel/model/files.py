"""A trained model of times on disk (`folder`). Its card holds the versions, the names of the features, the machines and data that it was
trained on, and its errors on what was held out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from effc.compiler.ir.errors import ArtifactError
from effc.costmodel import features
from effc.costmodel.hardware import Hardware
from effc.costmodel.model import folder as folders
from effc.costmodel.model.dataset import Dataset
from effc.costmodel.model.predictor import Predictor
from effc.costmodel.model.targets import CORRECTION, LATENCY, TARGETS

VERSION = 2


@dataclass(frozen=True)
class Model:
    """``card``: as the file has it; ``machines``: that it was trained on."""

    predictor: Predictor
    card: Mapping[str, Any]
    machines: tuple[Hardware, ...]


def save(folder: Path, predictor: Predictor, data: Dataset, told: Mapping[str, Any]) -> None:
    """Write a model that was trained on ``data``. ``told``: what else the card says, as JSON. ArtifactError: it cannot be written."""
    card = {
        "version": VERSION,
        "features": {"version": features.VERSION, "columns": list(features.COLUMNS)},
        "machines": [machine.to_json() for machine in data.machines],
        "records": len(data),
        "families": dict(Counter(map(str, data.families))),
        "skipped": dict(data.skipped),
        "widening": predictor.widening,
        **told,
    }
    folders.save(folder, predictor.texts, card)


def load(folder: Traversable) -> Model:
    """The model in ``folder``. ArtifactError: it is not there, of another version, of other features, or was changed."""
    card, machines = read_card(folder)
    try:
        widening = float(card["widening"])
        if not 0 < widening < float("inf") or not {*LATENCY} <= card["texts"].keys() <= {*TARGETS, CORRECTION}:
            raise ValueError("no texts of a model's targets")
        texts = folders.texts_of(folder, card)
    except folders.NOT_SAID as error:
        raise folders.no_card(folder, error) from error
    try:
        return Model(Predictor.of(texts, widening), card, machines)
    except ValueError as error:
        raise ArtifactError(f"the cost model in {folder} cannot be used: {error}; train it again") from error


def read_card(folder: Traversable) -> tuple[Mapping[str, Any], tuple[Hardware, ...]]:
    """The card alone, and the machines that it names; ArtifactError as `load`."""
    card = folders.card_of(folder)
    try:
        version, known = card["version"], card["features"]
        machines = tuple(Hardware.from_json(m) for m in card["machines"]) if version == VERSION else ()
    except folders.NOT_SAID as error:
        raise folders.no_card(folder, error) from error
    if version != VERSION or known != {"version": features.VERSION, "columns": list(features.COLUMNS)}:
        made = known.get("version") if isinstance(known, dict) else None
        raise ArtifactError(
            f"the cost model in {folder} was made for other features (version {version} with {made}, this effc has "
            f"{VERSION} with {features.VERSION}): train it again from its traces"
        )
    return card, machines
