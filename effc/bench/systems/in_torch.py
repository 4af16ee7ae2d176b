"""Eager PyTorch, and what ``torch.compile`` reaches: Inductor and effc."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import nn

from effc.bench.systems.system import DTYPES, Call, Setting, cast, tensors


class Eager:
    """The model as it is."""

    name = "eager"

    def absent(self, setting: Setting) -> str | None:
        return None

    def prepare(self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting) -> Call:
        module, inputs = cast(module, inputs, DTYPES[setting.dtype])
        return lambda: tensors(module(*inputs))


class Effc:
    """``torch.compile(model, backend="effc")`` with no options."""

    name = "effc"

    def absent(self, setting: Setting) -> str | None:
        return None

    def prepare(self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting) -> Call:
        module, inputs = cast(module, inputs, DTYPES[setting.dtype])
        compiled = torch.compile(module, backend="effc")
        return lambda: tensors(compiled(*inputs))


class Inductor:
    """``torch.compile(model)``; with ``freezing`` weights become constants, which it then packs for oneDNN."""

    def __init__(self, freezing: bool) -> None:
        self._freezing = freezing
        self.name = "inductor-freezing" if freezing else "inductor"

    def absent(self, setting: Setting) -> str | None:
        compilers = ("g++", "clang++", "c++")
        return None if any(map(shutil.which, compilers)) else f"it needs a C++ compiler ({', '.join(compilers)})"

    def prepare(self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting) -> Call:
        import torch._inductor.config as config

        config.freezing = self._freezing
        module, inputs = cast(module, inputs, DTYPES[setting.dtype])
        compiled = torch.compile(module, backend="inductor")
        return lambda: tensors(compiled(*inputs))
