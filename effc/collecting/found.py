"""The kernels of a model, with what a measurement needs of their operands' contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from effc.apart import compiled_apart
from effc.compiler.ir.equality import computation
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import ZEROS, KernelSpec
from effc.kernel_clock import KernelClock
from effc.runtime.stepwise import Step

_FLOATS = ("f64", "f32", "bf16", "f16")


@dataclass(frozen=True)
class Found:
    """A kernel as the model calls it. ``seen``: contents of those operands that the kernel's time or safety depends on: indices and masks,
    and weights with their zeros left out; by the operand's number.
    """

    computation: str
    op: str
    spec: KernelSpec
    symbols: tuple[int, ...]
    seen: dict[int, torch.Tensor]


def kernels(model: Callable[..., Any], inputs: tuple[Any, ...], options: Options) -> list[Found]:
    """Those that ``model(*inputs)`` calls, each computation once. Whatever effc raises for the model is raised."""
    clock, catcher = KernelClock(), Catcher()
    call = compiled_apart(model, options, clock.builder)
    with torch.no_grad(), clock.running(catcher):
        call(*inputs)
    return list(catcher.found.values())


class Catcher:
    """Looks at the operands of each call of a stepwise run. ``found``: by computation and the values of its symbols."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, tuple[int, ...]], Found] = {}
        self._digests: dict[str, str] = {}

    def before(self, step: Step) -> None:
        spec = step.kernel
        name = spec.digest()
        known = self._digests.setdefault(name, "") or computation(spec)
        self._digests[name] = known
        if (known, step.symbols) not in self.found:
            seen = {i: step.operand(i).clone() for i in range(len(spec.operands)) if _matters(spec, i)}
            self.found[known, step.symbols] = Found(known, step.call.name or spec.template, spec, step.symbols, seen)

    def after(self, step: Step) -> None:
        """Nothing is timed."""


def _matters(spec: KernelSpec, number: int) -> bool:
    operand = spec.operands[number]
    if operand.role in ("write", "scratch"):
        return False
    if operand.role == "packed":
        return operand.sparsity is not None or bool(spec.schedule.get("skip"))
    return operand.dtype not in _FLOATS or number in spec.get(ZEROS, ())
