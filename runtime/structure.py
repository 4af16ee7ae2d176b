"""Nested inputs and outputs as data: a tree in JSON whose leaves are numbers of tensors, or plain values.

``(x, {"mask": m, "flag": True})`` is ``{"tuple": [{"tensor": 0}, {"dict": [["mask", {"tensor": 1}], ["flag", {"value": true}]]}]}``
with ``[x, m]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from effc.compiler.ir.errors import InputError

Tree = Mapping[str, Any]


def flatten(
    value: Any, is_leaf: Callable[[Any], bool] = lambda v: isinstance(v, torch.Tensor)
) -> tuple[Tree, list[Any]]:
    """The tree of ``value`` and its tensors. A mapping becomes a dict, a dataclass and a named tuple likewise by their fields.

    InputError: something that is none of these, nor a number, string or None.
    """
    leaves: list[Any] = []
    return _flatten(value, leaves, is_leaf), leaves


def _flatten(value: Any, leaves: list[Any], is_leaf: Callable[[Any], bool]) -> Tree:
    if is_leaf(value):
        leaves.append(value)
        return {"tensor": len(leaves) - 1}
    if value is None or isinstance(value, bool | int | str):
        return {"value": value}
    if isinstance(value, float):
        return {"value": value} if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        value = dict(zip(value._fields, value, strict=True))
    elif is_dataclass(value) and not isinstance(value, type) and not isinstance(value, Mapping):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        return {"dict": [[_key(k), _flatten(v, leaves, is_leaf)] for k, v in value.items()]}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flatten(v, leaves, is_leaf) for v in value]}
    raise InputError(
        f"a value of type {type(value).__name__} stands among inputs or outputs; effc keeps tensors, numbers, strings, None, and "
        "tuples, lists, dicts and dataclasses of them"
    )


def leaves_of(tree: Tree, value: Any, place: str) -> list[Any]:
    """The leaves of ``value``, which must be built as ``tree`` is; InputError names the place where it is not."""
    found: dict[int, Any] = {}
    _match(tree, value, place, found)
    return [found[i] for i in range(len(found))]


def _match(tree: Tree, value: Any, place: str, found: dict[int, Any]) -> None:
    ((kind, content),) = tree.items()
    if kind == "tensor":
        found[content] = value
    elif kind == "dict":
        keys = [k for k, _ in content]
        if is_dataclass(value) and not isinstance(value, Mapping | type):
            value = {f.name: getattr(value, f.name) for f in fields(value)}
        if not isinstance(value, Mapping) or set(value) != set(keys):
            given = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise InputError(f"{place}: expected {', '.join(map(str, keys)) or 'none'} by name, got {given}")
        _match_parts([part for _, part in content], {key: value[key] for key in keys}, place, found)
    elif kind in ("tuple", "list"):
        if not isinstance(value, tuple | list) or len(value) != len(content):
            length = str(len(value)) if isinstance(value, tuple | list) else type(value).__name__
            raise InputError(f"{place}: expected {len(content)} in a {kind}, got {length}")
        _match_parts(content, dict(enumerate(value)), place, found)
    elif value != unflatten(tree, ()):
        raise InputError(f"{place}: expected {unflatten(tree, ())!r}, got {value!r}")


def _match_parts(parts: Sequence[Tree], values: Mapping[Any, Any], place: str, found: dict[int, Any]) -> None:
    """``parts`` against ``values`` in their order. Each call of a loaded model comes here: what is a leaf is taken without more ado."""
    for part, (key, value) in zip(parts, values.items(), strict=True):
        leaf = part.get("tensor")
        if leaf is not None:
            found[leaf] = value
        else:
            _match(part, value, f"{place}[{key!r}]", found)


def unflatten(tree: Tree, leaves: Sequence[Any]) -> Any:
    """The value of a tree."""
    ((kind, content),) = tree.items()
    match kind:
        case "tensor":
            return leaves[content]
        case "value":
            return content
        case "float":
            return float(content)
        case "dict":
            return {k: unflatten(v, leaves) for k, v in content}
        case "tuple":
            return tuple(unflatten(v, leaves) for v in content)
        case "list":
            return [unflatten(v, leaves) for v in content]
    raise ValueError(f"a tree of the unknown kind {kind!r}")


def _key(key: Any) -> str | int:
    if not isinstance(key, str | int):
        raise InputError(
            f"a dict among inputs or outputs has the key {key!r}; effc keeps keys that are strings or numbers"
        )
    return key
