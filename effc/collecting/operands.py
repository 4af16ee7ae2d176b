"""Memory for a kernel's operands: what a model leaves in the caches lies in one place, weights in as many as no cache holds.

Between two calls of a layer a model reads the weights of all others, so a kernel finds its own in memory, but what the kernel before it
wrote in a cache. Hence activations are the same at each call, and packed weights take turns among copies that together exceed the last
cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec
from effc.costmodel.hardware import Hardware
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.pages import empty_bytes

#: Bytes that copies of weights take where the last cache is unknown, and at most; copies at most.
_UNKNOWN, _MOST = 64 << 20, 256 << 20
_COPIES = 64
_LINE = 64
_FLOATS = ("f64", "f32", "bf16", "f16")


class Store:
    """Gives memory; what holds weights is filled once and lent to every kernel, so only one kernel is measured at a time."""

    def __init__(self, hardware: Hardware, seed: int) -> None:
        self._size = min(2 * hardware.l3 or _UNKNOWN, _MOST)
        self._generator = torch.Generator().manual_seed(seed)
        self._weights: dict[str, torch.Tensor] = {}

    def activations(
        self, spec: KernelSpec, symbols: Sequence[int], seen: Mapping[int, torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """One tensor for each operand that is not packed nor scratch. ``seen``: contents by the operand's number; other floats are normal
        numbers, other integers 0.
        """
        values = dict(zip(spec.symbols, symbols, strict=True))
        found = {}
        for number, operand in enumerate(spec.operands):
            if operand.role not in ("packed", "scratch"):
                found[number] = self._filled(operand.dtype, operand.size.evaluate(values), seen.get(number))
        return found

    def scheduled(
        self, spec: KernelSpec, symbols: Sequence[int], seen: Mapping[int, torch.Tensor]
    ) -> dict[int, list[torch.Tensor]]:
        """What the schedule asks for: scratch memory, and packed weights in as many copies as take turns."""
        values = dict(zip(spec.symbols, symbols, strict=True))
        found: dict[int, list[torch.Tensor]] = {}
        used: dict[str, int] = {}
        for number, operand in enumerate(spec.operands):
            size = operand.size.evaluate(values) * ITEM_SIZE[operand.dtype]
            if operand.role == "scratch":
                found[number] = [empty_bytes(max(size, 1))]
            elif operand.role == "packed" and number in seen:
                found[number] = self._copied(seen[number])
            elif operand.role == "packed":
                found[number] = self._lent(operand.dtype, size, used)
        return found

    def _filled(self, dtype: str, elements: int, content: torch.Tensor | None) -> torch.Tensor:
        memory = _typed(empty_bytes(max(elements, 1) * ITEM_SIZE[dtype]), dtype, max(elements, 1))
        if content is not None:
            return memory[: content.numel()].copy_(content) if content.numel() else memory
        return memory.normal_(generator=self._generator) if dtype in _FLOATS else memory.zero_()

    def _copied(self, content: torch.Tensor) -> list[torch.Tensor]:
        size = max(content.numel() * content.element_size(), 1)
        return [self._filled(_name(content), content.numel(), content) for _ in range(_turns(size, self._size))]

    def _lent(self, dtype: str, size: int, used: dict[str, int]) -> list[torch.Tensor]:
        """Parts of the memory that holds weights of this dtype, from what other operands have ``used`` on."""
        pool = self._pool(dtype, size)
        step = -(-max(size, 1) // _LINE) * _LINE
        start = used.get(dtype, 0) if used.get(dtype, 0) + step <= pool.numel() else 0
        turns = min(_turns(size, self._size), (pool.numel() - start) // step)
        used[dtype] = start + turns * step
        return [pool[start + i * step : start + i * step + size] for i in range(turns)]

    def _pool(self, dtype: str, size: int) -> torch.Tensor:
        """Bytes of random elements, as many as ``size`` at least."""
        held = self._weights.get(dtype)
        if held is None or held.numel() < size + _LINE:
            held = empty_bytes(max(self._size, size + _LINE))
            typed = _typed(held, dtype, held.numel() // ITEM_SIZE[dtype])
            if dtype in _FLOATS:
                typed.normal_(generator=self._generator)
            else:
                held.view(torch.int8).random_(-127, 128, generator=self._generator)
            self._weights[dtype] = held
        return held


def _turns(size: int, whole: int) -> int:
    """Copies that together are as large as ``whole``; one where it is that large itself."""
    return max(1, min(-(-whole // max(size, 1)), _COPIES)) if size < whole else 1


def _typed(memory: torch.Tensor, dtype: str, elements: int) -> torch.Tensor:
    return memory[: elements * ITEM_SIZE[dtype]].view(TORCH_DTYPES[dtype])


def _name(tensor: torch.Tensor) -> str:
    return next(name for name, dtype in TORCH_DTYPES.items() if dtype == tensor.dtype)
