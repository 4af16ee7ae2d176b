"""GPU kernels of specs, run in the ``tt`` interpreter on torch tensors, as a launcher would call them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tt_interpreter import launch

from effc.compiler.codegen.gpu.emit import emit
from effc.compiler.codegen.gpu.launch import Emitted
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import KernelSpec

SM80, SM90 = GpuTarget.named("sm_80"), GpuTarget.named("sm_90")


def memory_of(tensor: torch.Tensor) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    """The elements that ``tensor``'s storage holds from its first on, 1-D, as memory's own type (bf16: uint16, bool: int8)."""
    storage = tensor.untyped_storage()
    count = storage.nbytes() // tensor.element_size() - tensor.storage_offset()
    flat = tensor.as_strided((count,), (1,))
    if tensor.dtype == torch.bfloat16:
        return flat.view(torch.int16).numpy().view(np.uint16)
    if tensor.dtype in (torch.bool, torch.uint8):
        return flat.view(torch.int8).numpy()
    return flat.numpy()


class Kernel:
    """``spec`` for ``target``. ``emitted``: its launches."""

    def __init__(self, spec: KernelSpec, target: GpuTarget = SM80, *, aligned: bool = True) -> None:
        self.spec = spec
        self.emitted: Emitted = emit(spec, target, aligned=aligned)

    @property
    def text(self) -> str:
        return "\n".join(launched.text for launched in self.emitted.launches)

    def __call__(self, tensors: Sequence[torch.Tensor], symbols: Sequence[int] = (), threads: int = 1) -> int:
        """The value of the error cell after the call. A tensor an operand, whose first element is its base."""
        values = dict(zip(self.spec.symbols, symbols, strict=True))
        scratch = np.full(max(_number(self.emitted.scratch, values), 1), np.nan, np.float32)
        error = np.zeros(1, np.int32)
        buffers = [*map(memory_of, tensors), scratch, error]
        for launched in self.emitted.launches:
            launch(launched.text, _number(launched.grid, values), buffers, list(symbols))
        return int(error[0])


def _number(e: Expr, values: dict[str, int]) -> int:
    return e.evaluate(values)
