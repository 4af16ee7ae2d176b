"""``Owner``: the module that a user has compiled, and what it calls the tensors that its graphs read.

Dynamo names a tensor by where the frame that it compiles found it. Behind a graph break that frame is often the ``forward`` of an inner
module, in which ``L['self']`` is a layer: all layers of a kind call their weights alike, and none as calibrations and plans do. The tensors
are the user's own, so their names are found by identity.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Collection, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.fx import GraphModule

from effc.compiler.capture.parameters import static_names


class Owner:
    """Of ``module``, which is not kept alive."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)

    def names(self) -> Names:
        """As they are now."""
        module = self._module()
        return Names({} if module is None else _tensors(module))


class Names:
    """``tensors``: parameters and buffers by all of their names."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._names: dict[int, str] = {}
        for name, tensor in tensors.items():
            self._names.setdefault(id(tensor), name)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def of(self, tensor: object, found: str = "") -> str | None:
        """``found``, where that is one of the tensor's names, else the first of these; None where it has none."""
        return found if found and self._tensors.get(found) is tensor else self._names.get(id(tensor))

    def recur(self, names: Collection[str]) -> bool:
        """Whether an inner module has tensors by all of these names too, as one has that is of the outer one's kind."""
        first = next(iter(names), None)
        inner = (n.removesuffix(first) for n in self._tensors if n.endswith(f".{first}")) if first else ()
        return any(all(f"{prefix}{name}" in self._tensors for name in names) for prefix in inner)


def owned_names(gm: GraphModule, inputs: Sequence[Any], owner: Owner | None) -> tuple[dict[int, str], Owner | None]:
    """`static_names`, as the owner of these ``inputs`` has them; and the owner, where other modules of it may run the graph too: where
    Dynamo has other names for them, as the graph is that of an inner module then, and where an inner module has the same names.
    """
    names = static_names(gm)
    if owner is None:
        return names, None
    own: dict[int, str] = {}
    known = owner.names()
    for position, name in names.items():
        found = known.of(inputs[position], name) if position < len(inputs) else None
        own[position] = name if found is None or found in own.values() else found
    owned = [name for position, name in own.items() if position < len(inputs) and known.of(inputs[position])]
    return own, owner if own != names or known.recur(owned) else None


def owner_of(model: object) -> Owner | None:
    """None of what is no module."""
    return Owner(model) if isinstance(model, nn.Module) else None


def running() -> Owner | None:
    """Of the module whose compiled call is running in this thread, the innermost one; None where that is a function's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = _compiled(frame.f_locals.get("self"), frame.f_code.co_name)
        if module is not None:
            return Owner(module)
        frame = frame.f_back
    return None


def _compiled(caller: Any, function: str) -> nn.Module | None:
    """The module that ``caller`` runs compiled, if it is one whose ``function`` does that: wrapped, or compiled in its place."""
    if isinstance(caller, OptimizedModule):
        return caller._orig_mod if isinstance(caller._orig_mod, nn.Module) else None
    in_place = function == "_wrapped_call_impl" and isinstance(caller, nn.Module)
    return caller if in_place and caller._compiled_call_impl is not None else None


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
