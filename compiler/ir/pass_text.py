"""The text form of a list of passes, as ``effc-opt -p`` takes it and reproducers hold it.

    pipeline := step (',' step)*
    step     := NAME | NAME '{' option ((',' | ' ') option)* '}' | 'mlir:' MLIR's own pipeline syntax for one pass
    option   := FIELD '=' value            a FIELD of the pass's dataclass
    value    := true | false | none | number | text | '[' value (',' value)* ']'

``parse_pipeline(format_pipeline(steps)) == steps``.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import suggest
from effc.compiler.ir.passes import Pass, Upstream

_STEP = re.compile(r"(?P<name>[A-Za-z][\w-]*)\s*(?:\{(?P<options>.*)\})?", re.DOTALL)
_UPSTREAM = "mlir:"
_CLOSES = {"}": "{", "]": "[", ")": "("}


def parse_pipeline(text: str, known: Mapping[str, type[Pass]]) -> tuple[Pass, ...]:
    """The passes that ``text`` lists; OptionError says which step or option is wrong, and what there is."""
    return tuple(_parse_step(step, known) for step in _split(text, ",") if step)


def format_pipeline(steps: Iterable[Pass]) -> str:
    """The text that ``parse_pipeline`` reads back; fields that have their default are left out."""
    return ",".join(map(_format_step, steps))


def describe_type(cls: type[Pass], option: str) -> str:
    """What a value of a pass's option looks like, in words."""
    return _describe(typing.get_type_hints(cls)[option])


def _parse_step(text: str, known: Mapping[str, type[Pass]]) -> Pass:
    if text.startswith(_UPSTREAM):
        return Upstream(text.removeprefix(_UPSTREAM))
    match = _STEP.fullmatch(text)
    if match is None:
        raise OptionError(f"'{text}' is not a pass; write NAME, NAME{{option=value,…}} or {_UPSTREAM}NAME")
    name, options = match["name"], match["options"] or ""
    if name not in known:
        raise OptionError(f"no pass is named '{name}'; {suggest(name, known)}; a pass of MLIR's own is {_UPSTREAM}NAME")
    cls = known[name]
    types_ = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for option in _split(options, ", \t\n"):
        key, equals, value = option.partition("=")
        if key not in fields:
            raise OptionError(f"pass '{name}' has no option '{key}'; {suggest(key, fields)}")
        if not equals:
            raise OptionError(f"pass '{name}': option '{key}' needs a value: {key}=…")
        if key in values:
            raise OptionError(f"pass '{name}': option '{key}' stands twice")
        try:
            values[key] = _convert(value, types_[key])
        except ValueError:
            raise OptionError(f"pass '{name}': {key}={value} is not {_describe(types_[key])}") from None
    missing = [
        f.name
        for f in fields.values()
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise OptionError(f"pass '{name}' needs a value for: {', '.join(missing)}")
    return cls(**values)


def _format_step(step: Pass) -> str:
    if isinstance(step, Upstream):
        return _UPSTREAM + step.text
    shown = [
        f"{f.name}={_format_value(value)}"
        for f in dataclasses.fields(step)
        if (value := getattr(step, f.name)) != f.default
    ]
    return step.name + (f"{{{','.join(shown)}}}" if shown else "")


def _format_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(_format_value, value))}]" if isinstance(value, tuple) else str(value)


def _convert(text: str, wanted: Any) -> Any:
    """``text`` as the type that a field declares; ValueError where it is not one."""
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        return _convert_first(text, args)
    if origin is tuple:
        if not (text.startswith("[") and text.endswith("]")):
            raise ValueError(text)
        return tuple(_convert(item, args[0]) for item in _split(text[1:-1], ",") if item)
    if origin is typing.Literal:
        chosen = next((a for a in args if str(a) == text), None)
        if chosen is None:
            raise ValueError(text)
        return chosen
    if wanted is bool:
        return {"true": True, "false": False}.get(text) if text in ("true", "false") else _reject(text)
    if wanted is type(None):
        return None if text == "none" else _reject(text)
    if wanted in (int, float, str):
        return wanted(text)
    raise TypeError(f"a pass option of type {wanted} has no text form; use bool, int, float, str, Literal or tuple")


def _convert_first(text: str, wanted: tuple[Any, ...]) -> Any:
    for one in sorted(wanted, key=lambda t: t is str):  # str takes anything, so it comes last
        try:
            return _convert(text, one)
        except ValueError:
            continue
    return _reject(text)


def _reject(text: str) -> Any:
    raise ValueError(text)


def _describe(wanted: Any) -> str:
    args = typing.get_args(wanted)
    match typing.get_origin(wanted):
        case types.UnionType | typing.Union:
            return " or ".join(map(_describe, args))
        case origin if origin is tuple:
            return f"a list [a,b,…], each {_describe(args[0])}"
        case typing.Literal:
            return "one of " + ", ".join(map(str, args))
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}
    return names[wanted]


def _split(text: str, separators: str) -> Iterator[str]:
    """The pieces between separators outside all brackets, stripped; OptionError where brackets do not match."""
    open_: list[str] = []
    start = 0
    for i, char in enumerate(text):
        if char in _CLOSES.values():
            open_.append(char)
        elif char in _CLOSES and (not open_ or open_.pop() != _CLOSES[char]):
            raise OptionError(f"'{char}' closes nothing in '{text}'")
        elif char in separators and not open_:
            if piece := text[start:i].strip():
                yield piece
            start = i + 1
    if open_:
        raise OptionError(f"'{open_[-1]}' is never closed in '{text}'")
    if piece := text[start:].strip():
        yield piece
