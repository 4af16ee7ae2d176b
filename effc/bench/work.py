"""What one call must do at least: its arithmetic, and the bytes it must read and write. The two axes of the roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_ROWS = (torch.ops.aten.embedding.default, torch.ops.aten.index_select.default)


@dataclass(frozen=True)
class Work:
    """``flops``: of contractions by torch's counter, a multiply-add counted as two. ``bytes``: parameters and buffers that are read,
    each once (of tables that are looked up the rows), inputs, and outputs.
    """

    flops: int
    bytes: int

    def floor(self, peak: float, bandwidth: float, narrower: int = 1) -> float:
        """Seconds below which no call can be, of elements that take ``narrower`` times less memory: Williams et al., CACM 52(4), 2009."""
        return max(self.flops / peak, self.bytes / narrower / bandwidth)

    def bound(self, peak: float, bandwidth: float, cache: int) -> str:
        """What the floor is made of: ``"compute"``, ``"memory"``, or ``"cache"`` where a cache of that many bytes holds all of the data,
        so that they need not come from memory: then it is no floor.
        """
        if self.flops / peak >= self.bytes / bandwidth:
            return "compute"
        return "memory" if self.bytes > cache else "cache"


def work_of(module: nn.Module, inputs: tuple[Any, ...]) -> Work:
    """Of one eager call, without gradients, in the types that both have."""
    state = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            outputs = module(*inputs)
        with _Reads(state) as reads:
            module(*inputs)
    return Work(counter.get_total_flops(), reads.bytes() + _size((inputs, outputs)))


class _Reads(TorchDispatchMode):
    """Which of the storages ``state`` the ops read, and how much of each."""

    def __init__(self, state: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._state = state
        self._read: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ROWS and self._owner(args[0]) is not None:
            self._count(args[0], _size(result), lambda old, new: old + new)
        elif not func.is_view:
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and self._owner(leaf) is not None:
                    self._count(leaf, leaf.numel() * leaf.element_size(), max)
        return result

    def bytes(self) -> int:
        return sum(self._read.values())

    def _owner(self, tensor: Tensor) -> int | None:
        place = tensor.untyped_storage().data_ptr()
        return place if place in self._state else None

    def _count(self, tensor: Tensor, size: int, merge: Callable[[int, int], int]) -> None:
        storage = tensor.untyped_storage()
        known = self._read.get(storage.data_ptr(), 0)
        self._read[storage.data_ptr()] = min(merge(known, size), storage.nbytes())


def _size(tree: Any) -> int:
    return sum(t.numel() * t.element_size() for t in pytree.tree_leaves(tree) if isinstance(t, Tensor))
