"""Eager PyTorch, and what ``torch.compile`` reaches: Inductor and effc."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from effc.bench.systems import quantized
from effc.bench.systems.system import DTYPES, Call, Setting, cast, missing, tensors
from effc.calibrating.calibration import calibrate
from effc.shipping.loading import load
from effc.shipping.saving import save


class Eager:
    """The model as it is; in place of an int8 model the float32 one, the baseline."""

    name = "eager"

    def absent(self, setting: Setting) -> str | None:
        return None

    def prepare(
        self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting, calibration: Sequence[tuple[Any, ...]] = ()
    ) -> Call:
        module, inputs = cast(module, inputs, DTYPES[setting.dtype])
        return lambda: tensors(module(*inputs))


class Effc:
    """``torch.compile(model, backend="effc")``, with no options but the ``passes`` of a kernel whose weights are compressed."""

    name = "effc"

    def absent(self, setting: Setting) -> str | None:
        return quantized.absent() if setting.dtype == "int8" else None

    def prepare(
        self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting, calibration: Sequence[tuple[Any, ...]] = ()
    ) -> Call:
        module, inputs = _made(module, inputs, setting, calibration)
        compiled = torch.compile(module, backend="effc", options=_options(setting))
        return lambda: tensors(compiled(*inputs))


class EffcSaved:
    """``effc.load(effc.save(model))``: effc's kernels called without Dynamo and its guards."""

    name = "effc-saved"

    def absent(self, setting: Setting) -> str | None:
        return Effc().absent(setting)

    def prepare(
        self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting, calibration: Sequence[tuple[Any, ...]] = ()
    ) -> Call:
        module, inputs = _made(module, inputs, setting, calibration)
        with tempfile.TemporaryDirectory(prefix="effc-bench-") as folder:
            save(module, inputs, folder, options=_options(setting))
            loaded = load(folder)
        return lambda: tensors(loaded(*inputs))


class EffcQuantize:
    """The float32 model quantized by effc itself: ``passes={"quantize": …}`` with calibrated activations."""

    name = "effc-quantize"

    def absent(self, setting: Setting) -> str | None:
        return None if setting.dtype == "int8" else "it is for int8"

    def prepare(
        self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting, calibration: Sequence[tuple[Any, ...]] = ()
    ) -> Call:
        chosen = {"activations": "tensor", "calibration": calibrate(module, calibration, held_out=0)}
        options: dict[str, Any] = {"passes": {"quantize": chosen}}
        compiled = torch.compile(module, backend="effc", options=options)
        return lambda: tensors(compiled(*inputs))


class Inductor:
    """``torch.compile(model)``; with ``freezing`` weights become constants, which it then packs for oneDNN. Its patterns for int8
    are those that torchao registers, and run with freezing. ``autotune``: with ``mode="max-autotune"``.
    """

    def __init__(self, freezing: bool = False, autotune: bool = False) -> None:
        self._freezing, self._mode = freezing, "max-autotune" if autotune else None
        self.name = f"inductor{'-freezing' if freezing else ''}{'-max-autotune' if autotune else ''}"

    def absent(self, setting: Setting) -> str | None:
        if setting.device == "cuda":
            return missing("triton")
        compilers = ("g++", "clang++", "c++")
        if not any(map(shutil.which, compilers)):
            return f"it needs a C++ compiler ({', '.join(compilers)})"
        if setting.dtype != "int8":
            return None
        return quantized.absent() if self._freezing else "its int8 kernels need freezing"

    def prepare(
        self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting, calibration: Sequence[tuple[Any, ...]] = ()
    ) -> Call:
        import torch._inductor.config as config

        config.freezing = self._freezing
        module, inputs = _made(module, inputs, setting, calibration)
        compiled = torch.compile(module, backend="inductor", mode=self._mode)
        return lambda: tensors(compiled(*inputs))


def _options(setting: Setting) -> dict[str, Any] | None:
    """Of ``torch.compile``."""
    return {"passes": {name: dict(chosen) for name, chosen in setting.passes}} if setting.passes else None


def _made(
    module: nn.Module, inputs: tuple[Any, ...], setting: Setting, calibration: Sequence[tuple[Any, ...]]
) -> tuple[nn.Module, tuple[Any, ...]]:
    """What is compiled, and its inputs, in the dtype."""
    if setting.dtype == "int8":
        return quantized.quantize(module, inputs, calibration), inputs
    return cast(module, inputs, DTYPES[setting.dtype])
