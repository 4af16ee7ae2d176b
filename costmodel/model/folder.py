"""A trained model on disk: a folder with LightGBM's text of each target, and ``card.json``, which says what it is and checks it.

Nothing is unpickled; a text that is not the one that the card names, by size and digest, is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from effc.compiler.ir.errors import ArtifactError

CARD = "card.json"
#: What reading a card that does not say what it should may raise.
NOT_SAID = (AttributeError, KeyError, OverflowError, TypeError, ValueError)
#: Bytes of a text at most: tens of times what training makes; and of a card.
_LARGEST, _LARGEST_CARD = 64 << 20, 4 << 20


def save(folder: Path, texts: Mapping[str, str], card: Mapping[str, Any]) -> None:
    """Write ``texts``, by the names of their targets, and ``card``, as JSON. ArtifactError: they cannot be written."""
    encoded = {name: text.encode() for name, text in texts.items()}
    named = {name: {"bytes": len(text), "sha256": _digest(text)} for name, text in encoded.items()}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in {**card, "texts": named}.items())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in encoded.items():
            (folder / _file(name)).write_bytes(text)
        (folder / CARD).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"the cost model cannot be written to {folder}: {error.strerror}") from error


def card_of(folder: Traversable) -> dict[str, Any]:
    """The card. ArtifactError: there is none, or it is no object of JSON."""
    try:
        data = (folder / CARD).read_bytes()
        if len(data) > _LARGEST_CARD:
            raise ValueError(f"{len(data)} bytes")
        card = json.loads(data)
        if not isinstance(card, dict):
            raise ValueError("no object")
    except OSError as error:
        raise ArtifactError(f"there is no cost model in {folder}: {error.strerror}") from error
    except (RecursionError, ValueError) as error:
        raise no_card(folder, error) from error
    return card


def texts_of(folder: Traversable, card: Mapping[str, Any]) -> dict[str, str]:
    """The texts that ``card`` names. ArtifactError: one is not there, or not what was named. One of `NOT_SAID`: it names none."""
    named = {str(name): (int(t["bytes"]), str(t["sha256"])) for name, t in card["texts"].items()}
    return {name: _text(folder / _file(name), size, digest) for name, (size, digest) in named.items()}


def no_card(folder: Traversable, error: Exception) -> ArtifactError:
    """For what is wrong with the card."""
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
