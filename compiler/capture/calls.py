"""Calls of a region's executable, as an assembled graph makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch

from effc.compiler.capture.assemble import RegionCall

if TYPE_CHECKING:
    from effc.runtime.executable import Executable
    from effc.runtime.gpu.executable import GpuExecutable


def caller(executable: Executable | GpuExecutable, validate: bool) -> RegionCall:
    """``validate``: the tensors' strides are looked at in each call."""
    if not validate:
        return executable

    def call(symbols: Sequence[int], tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return executable(symbols, tensors, validate=True)

    return call


def waiting(call: RegionCall, executable: Executable | GpuExecutable) -> RegionCall:
    """``call`` on a GPU, which raises at once what its bounds checks find."""
    on_gpu = cast("GpuExecutable", executable)

    def wait(symbols: Sequence[int], tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        results = call(symbols, tensors)
        on_gpu.raise_failed()
        return results

    return wait
