"""How much memory eager PyTorch's activations take at their most: the tensors that are alive at once, without parameters and inputs."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def eager_peak(module: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Bytes, of one call without gradients. What kernels use inside (packed weights, oneDNN's scratch memory) is not seen: eager takes at
    least that much.
    """
    held = {
        t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers(), *pytree.tree_leaves(inputs))
    }
    with torch.no_grad(), _Alive(held) as alive:
        module(*inputs)
        peak: int = alive.peak
    return peak


class _Alive(TorchDispatchMode):
    """``peak``: the most bytes of storages that results of ops held at once, those in ``held`` apart."""

    def __init__(self, held: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._held = held
        self._users: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._held or not size:
            return
        if not self._users[place]:
            self._now += size
            self.peak = max(self.peak, self._now)
        self._users[place] += 1
        weakref.finalize(tensor, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            self._now -= size
