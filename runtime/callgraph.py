"""A graph of regions and ATen ops as data, and the Python function made of it.

A *step* is ``{"to": n, "call": [kind, target], "args": [...], "kwargs": {...}}``: value *n* is the result of

==========  ====================================================================================
``region``  region ``target`` (a number): args are its symbols and its tensors
``op``      the PyTorch operator of the qualified name ``target``: ``aten.add.Tensor``
``python``  one of `PYTHON`: arithmetic of sizes, an item of a tuple
``method``  ``size`` or ``view`` of the first argument
==========  ====================================================================================

An argument is ``{"value": n}``, a plain JSON value under ``"plain"``, a ``"list"`` or ``"tuple"`` of arguments, or a thing of
torch's by its name (``"dtype"``, ``"device"``, ``"layout"``, ``"memory_format"``); NaN and infinities are text under ``"float"``. Values
``0 …`` are the graph's inputs. Nothing else is called, and every value is dropped after its last use.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from effc.compiler.ir.errors import ArtifactError

Function = Callable[..., Any]

_OPERATORS = (
    "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "getitem", "eq", "ne", "lt", "le", "gt", "ge", "and_",
    "or_", "not_",
)  # fmt: skip
#: Functions of Python that a graph may call.
PYTHON: Mapping[str, Function] = {
    **{name: getattr(operator, name) for name in _OPERATORS},
    **{f"math.{name}": getattr(math, name) for name in ("floor", "ceil", "trunc", "sqrt")},
    **{name: getattr(torch, name) for name in ("sym_max", "sym_min", "sym_float", "sym_int", "sym_not", "sym_ite")},
}
METHODS = ("size", "view")
_NAMED = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def encode(value: Any, number_of: Callable[[Any], int | None]) -> Any:
    """An argument as data; ``number_of`` gives the number of what stands for a value. TypeError where it cannot be written."""
    number = number_of(value)
    if number is not None:
        return {"value": number}
    if value is None or isinstance(value, bool | int | str):
        return {"plain": value}
    if isinstance(value, float):
        return {"plain": value} if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple | list):
        return {"list" if isinstance(value, list) else "tuple": [encode(v, number_of) for v in value]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for name, kind in _NAMED.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    raise TypeError(f"an argument of type {type(value).__name__}")


def function_of(
    inputs: int, steps: Sequence[Mapping[str, Any]], outputs: Sequence[Any], regions: Sequence[Function]
) -> Callable[[list[Any]], tuple[Any, ...]]:
    """The function of a list of ``inputs`` values, which it empties. ArtifactError: a step that is none, or an op that this
    torch lacks.
    """
    try:
        return _Writer(regions).write(inputs, steps, outputs)
    except (KeyError, TypeError, ValueError, IndexError) as err:
        raise ArtifactError(f"a saved graph is damaged ({err!r}); save the model again") from err


class _Writer:
    """Python source in which every name is ``v<n>``, ``f<n>`` or ``c<n>``: nothing of the data becomes code."""

    def __init__(self, regions: Sequence[Function]) -> None:
        self.regions = regions
        self.scope: dict[str, Any] = {}
        self.lines: list[str] = []

    def write(
        self, inputs: int, steps: Sequence[Mapping[str, Any]], outputs: Sequence[Any]
    ) -> Callable[[list[Any]], tuple[Any, ...]]:
        last: dict[int, int] = {}
        known = set(range(inputs))
        for position, step in enumerate([*steps, {"args": outputs, "kwargs": {}}]):
            for used in _values([step["args"], step["kwargs"]]):
                if used not in known:
                    raise ValueError(f"value {used} is used before it is made")
                last[used] = position
            known.add(int(step.get("to", 0)))
        self.lines.append("def run(values):")
        if inputs:
            self.lines.append(f"  [{', '.join(f'v{i}' for i in range(inputs))}] = values; values.clear()")
        self._drop([i for i in range(inputs) if i not in last])
        for position, step in enumerate(steps):
            arguments = [self._argument(a) for a in step["args"]]
            arguments += [f"**{{{self._constant(k)}: {self._argument(a)}}}" for k, a in step["kwargs"].items()]
            self.lines.append(f"  v{int(step['to'])} = {self._callee(*step['call'])}({', '.join(arguments)})")
            self._drop(
                [v for v in {*_values([step["args"], step["kwargs"]]), int(step["to"])} if last.get(v, 0) <= position]
            )
        self.lines.append(f"  return ({''.join(f'{self._argument(o)}, ' for o in outputs)})")
        exec("\n".join(self.lines), self.scope)
        run: Callable[[list[Any]], tuple[Any, ...]] = self.scope["run"]
        return run

    def _drop(self, values: Sequence[int]) -> None:
        if values:
            self.lines.append(f"  del {', '.join(f'v{v}' for v in sorted(values))}")

    def _callee(self, kind: str, target: Any) -> str:
        if kind == "region":
            return self._name("f", self.regions[target])
        if kind == "op":
            return self._name("f", _operator(target))
        if kind == "python":
            return self._name("f", PYTHON[target])
        if kind == "method" and target in METHODS:
            return self._name("f", getattr(torch.Tensor, target))
        raise ValueError(f"a call of {kind} {target}")

    def _argument(self, data: Mapping[str, Any]) -> str:
        ((kind, content),) = data.items()
        match kind:
            case "value":
                return f"v{int(content)}"
            case "list":
                return f"[{', '.join(map(self._argument, content))}]"
            case "tuple":
                return f"({''.join(f'{self._argument(c)}, ' for c in content)})"
            case "plain":
                return self._constant(content)
            case "float":
                return self._constant(float(content))
            case "device":
                return self._constant(torch.device(content))
        found = getattr(torch, content)
        if not isinstance(found, _NAMED[kind]):
            raise TypeError(f"torch.{content} is no {kind}")
        return self._constant(found)

    def _constant(self, value: Any) -> str:
        return self._name("c", value)

    def _name(self, prefix: str, value: Any) -> str:
        name = f"{prefix}{len(self.scope)}"
        self.scope[name] = value
        return name


def _values(data: Any) -> set[int]:
    """Numbers of all values in an argument."""
    if isinstance(data, Mapping):
        if set(data) == {"value"}:
            return {int(data["value"])}
        return set().union(*(_values(v) for v in data.values()))
    return set().union(*(_values(v) for v in data)) if isinstance(data, list | tuple) else set()


def _operator(name: str) -> Function:
    namespace, op, overload = name.split(".")
    try:
        found: Function = getattr(getattr(getattr(torch.ops, namespace), op), overload)
    except AttributeError:
        raise ArtifactError(
            f"the saved model calls {name}, which this PyTorch ({torch.__version__}) lacks; import what registers it, or save the "
            "model again with this version"
        ) from None
    return found
