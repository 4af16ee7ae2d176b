"""For which devices effc compiles, and who makes the executables for each: the inputs' devices choose, within the option ``target``."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch.fx import Node

from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import Options
from effc.compiler.ir.program import Call

if TYPE_CHECKING:
    from effc.compiler.build import Built
    from effc.compiler.gpu.build import GpuBuilt
    from effc.compiler.gpu.choice import AtenOp, Verdict

#: ``build(text)`` gives the executable of a region's graph IR for the CPU, or raises LoweringError or UnsupportedError.
Build = Callable[[str], "Built"]


class BuildOnGpus(Protocol):
    """A ``compiler.gpu.build.GpuBuilder``."""

    def unusable(self, device: torch.device) -> str | None: ...

    def build(self, text: str, device: torch.device) -> GpuBuilt: ...

    def judged(self, built: GpuBuilt, call: Call, op: AtenOp) -> Verdict: ...


def gpu_builder(options: Options) -> BuildOnGpus:
    """effc's own, through the caches."""
    from effc.compiler.gpu.build import GpuBuilder
    from effc.runtime.cache import Cache

    plain = {**options.of_code(), "schedules": {}}  # a plan's are for a CPU
    return GpuBuilder(plain, Cache(options.cache_dir))


class Devices:
    """``cpu`` and ``gpus()`` make executables; the latter is asked for once something lies on a device that is no CPU."""

    def __init__(self, options: Options, cpu: Build, gpus: Callable[[], BuildOnGpus]) -> None:
        self._target, self._cpu, self._make_gpus = options.target, cpu, gpus

    @cached_property
    def _gpus(self) -> BuildOnGpus:
        return self._make_gpus()

    def build(self, text: str, device: torch.device | None) -> Built | GpuBuilt:
        """The executable of a region; LoweringError, UnsupportedError: it goes to ATen."""
        return self._cpu(text) if device is None or device.type == "cpu" else self._gpus.build(text, device)

    def judged(self, built: GpuBuilt, call: Call, op: AtenOp) -> Verdict:
        """Whether a GPU's kernel or ATen's op runs a product."""
        return self._gpus.judged(built, call, op)

    def reason(self, node: Node) -> str | None:
        """Why no device's kernels may hold the node; None where those of the device that it is on may.

        OptionError: ``target="cuda"`` asks for what this machine cannot do.
        """
        found = _devices(node)
        if len(found) > 1:
            return f"it is on several devices ({', '.join(sorted(map(str, found)))}): ATen moves data between them"
        device = next(iter(found), None)
        if device is None:
            return None
        if device.type == "cpu":
            return (
                "it is on the CPU, and the option target='cuda' compiles for GPUs alone"
                if self._target == "cuda"
                else None
            )
        if self._target == "cpu":
            return f"it is on {device}, and the option target='cpu' compiles for the CPU alone"
        reason = self._gpus.unusable(device)
        if reason is not None and self._target == "cuda":
            raise OptionError(
                f"option 'target' is 'cuda': {reason}; or leave the option out, and ATen runs what is on GPUs"
            )
        return reason


def _devices(node: Node) -> set[torch.device]:
    """Of what the node reads, and makes for someone."""
    made = node.meta.get("val")
    if isinstance(made, tuple | list):
        wanted = {u.args[1] for u in node.users if u.target is operator.getitem}
        made = [value for i, value in enumerate(made) if i in wanted]
    found: set[torch.device] = set()
    for value in (made, *(n.meta.get("val") for n in node.all_input_nodes)):
        parts = value if isinstance(value, tuple | list) else (value,)
        found.update(part.device for part in parts if isinstance(part, torch.Tensor))
    return found
