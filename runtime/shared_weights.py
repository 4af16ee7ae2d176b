"""Derived tensors that programs share: a model compiled for several sizes, or for prefill and for decode, packs each weight once.

Tensors are held weakly, by the weights that use them. What is found has the same derivation of the same sources: the same storages at
the same versions, with the same content as far as the guard's sample sees.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

from effc.runtime.guard import Fingerprint, content_sample, fingerprint, storage_reference


class Sources:
    """What tensors are derived from, in its present state."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.state = tuple(fingerprint(tensor, versioned=True) for tensor in tensors)
        self._storages = [storage_reference(tensor.untyped_storage()) for tensor in tensors]
        self._content = [entry for tensor in tensors for entry in content_sample(tensor)]

    def unchanged(self) -> bool:
        """Whether they still exist and hold what they held."""
        return not any(storage.expired() for storage in self._storages) and all(
            ctypes.c_uint64.from_address(address).value & mask == value for address, mask, value in self._content
        )


@dataclass(frozen=True)
class _Shared:
    tensor: weakref.ref[torch.Tensor]
    sources: Sources


_known: dict[tuple[Hashable, tuple[Fingerprint, ...]], _Shared] = {}
_lock = threading.Lock()


def shared(derivation: Hashable, sources: Sources, derive: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What another program has derived by ``derivation`` from ``sources``, else ``derive()``."""
    key = (derivation, sources.state)
    with _lock:
        known = _known.get(key)
    if known is not None and (tensor := known.tensor()) is not None and known.sources.unchanged():
        return tensor
    tensor = derive()
    with _lock:
        _known[key] = _Shared(weakref.ref(tensor, lambda _: _known.pop(key, None)), sources)
    return tensor


def forget_shared(storages: set[int]) -> None:
    """Share nothing any more that was derived from these storages (``_cdata``)."""
    with _lock:
        for key in [key for key in list(_known) if any(source[0] in storages for source in key[1])]:
            _known.pop(key, None)


def after_fork() -> None:
    """A thread that held the lock does not exist in the child."""
    global _lock
    _lock = threading.Lock()
