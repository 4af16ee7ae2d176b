"""The guard over a set of parameters: tells, in a few microseconds for hundreds of them, whether one changed.

Three things are compared:

1. the tensors that the caller passes are the same Python objects;
2. each still has the storage, data pointer, offset, sizes, strides and version that it had (`tensor_layout`; natively);
3. every `SAMPLE_PERIOD` checks, `SAMPLE_WORDS` words of each parameter's content, for writes that torch does not version:
   through ``.data`` or ``.detach().numpy()``, and to inference tensors. What changes none of those words stays unseen.

Nothing of the user's is kept alive, and no weak reference is taken to his tensors (``swap_tensors`` refuses those). Their storages
are held weakly instead, by ``StorageWeakRef``: a storage's address is not used again while one exists, so equal addresses are
the same storage.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from effc.runtime.tensor_layout import Entry, tensor_layout

SAMPLE_PERIOD = 64
SAMPLE_WORDS = 32
_FULL = (1 << 64) - 1
#: Storage (``_cdata``), address, version, sizes, strides, dtype.
Fingerprint = tuple[int, int, int, torch.Size, tuple[int, ...], torch.dtype]
Unchanged = Callable[[int, int], int]  # ``effc_unchanged`` of a program's driver


class StorageReference(Protocol):
    """A ``StorageWeakRef``."""

    def expired(self) -> bool: ...


storage_reference: Callable[[torch.UntypedStorage], StorageReference] = StorageWeakRef


class Guard:
    """Watches ``parameters``. Of a *source*, from which something is derived, the content counts; of others only the place."""

    def __init__(self, parameters: tuple[torch.Tensor, ...], is_source: Sequence[bool], unchanged: Unchanged) -> None:
        chosen = [p for p, source in zip(parameters, is_source, strict=True) if source]
        self.sources = [fingerprint(p, versioned=True) for p in chosen]
        self._identities = _Identities(parameters)
        self._storages = [storage_reference(p.untyped_storage()) for p in parameters]
        self._source_storages = [storage_reference(p.untyped_storage()) for p in chosen]
        self._slow: list[_Slow] = []
        self._metadata = _Table(self._native_entries(parameters, is_source), unchanged)
        self._content = _Table([entry for p in chosen for entry in content_sample(p)], unchanged)
        self._checks = 0

    def _native_entries(self, parameters: Sequence[torch.Tensor], is_source: Sequence[bool]) -> list[Entry]:
        """What can be compared natively; the rest goes to ``_slow``."""
        layout = tensor_layout()
        entries: list[Entry] = []
        for i, (parameter, source) in enumerate(zip(parameters, is_source, strict=True)):
            found = layout.entries(parameter, source) if layout is not None else None
            if found is None:
                self._slow.append(_Slow(i, source, fingerprint(parameter, source)))
            else:
                entries += found
        return entries

    def holds(self, parameters: tuple[torch.Tensor, ...]) -> bool:
        """Whether ``parameters`` are the tensors that are watched, and none has changed."""
        if (
            not self._identities.match(parameters)
            or not self._metadata.holds()
            or any(fingerprint(parameters[s.place], s.versioned) != s.known for s in self._slow)
        ):
            return False
        self._checks += 1
        return self._checks % SAMPLE_PERIOD != 0 or self._content.holds()

    def alive(self) -> bool:
        """Whether the memory of every source still exists."""
        return not any(storage.expired() for storage in self._source_storages)

    def covers(self, other: Guard) -> bool:
        """Whether ``other`` watches the same sources in the same state, through whatever objects."""
        return self.sources == other.sources and self.alive() and self._content.holds()

    def storages(self) -> set[int]:
        """Where the sources lie (``_cdata``)."""
        return {source[0] for source in self.sources}


def fingerprint(tensor: torch.Tensor, versioned: bool) -> Fingerprint:
    """What changes when torch knows of a change, with ``versioned`` also of the content; inference tensors have no version."""
    version = tensor._version if versioned and not tensor.is_inference() else -1
    storage = tensor.untyped_storage()._cdata
    return (storage, tensor.data_ptr(), version, tensor.shape, tensor.stride(), tensor.dtype)


def content_sample(tensor: torch.Tensor) -> list[Entry]:
    """Words of the tensor's content, evenly spread, first and last included; whole aligned words, so no page is overstepped. A
    GPU's memory cannot be looked at.
    """
    if tensor.numel() == 0 or tensor.device.type != "cpu":
        return []
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start, end = tensor.data_ptr(), tensor.data_ptr() + span * tensor.element_size()
    first, last = start // 8, (end - 1) // 8
    count = min(SAMPLE_WORDS, last - first + 1)
    entries = []
    for k in range(count):
        address = 8 * (first + (last - first) * k // max(count - 1, 1))
        mask = (_FULL << 8 * max(start - address, 0)) & (_FULL >> 8 * max(address + 8 - end, 0))
        entries.append((address, mask, ctypes.c_uint64.from_address(address).value & mask))
    return entries


@dataclass(frozen=True)
class _Slow:
    """A parameter whose metadata Python must compare; ``place`` among the parameters."""

    place: int
    versioned: bool
    known: Fingerprint


class _Table:
    """Entries for ``effc_unchanged`` in native memory."""

    def __init__(self, entries: Sequence[Entry], unchanged: Unchanged) -> None:
        self._words = array("Q", [word for entry in entries for word in entry])
        self._address, self._count, self._unchanged = self._words.buffer_info()[0], len(entries), unchanged

    def holds(self) -> bool:
        return self._unchanged(self._address, self._count) == self._count


class _Identities:
    """Which Python objects a tuple holds, compared in memory: for hundreds of them a tenth of the time of ``map(id, …)``."""

    def __init__(self, objects: tuple[object, ...]) -> None:
        self._ids = array("Q", map(id, objects))
        layout = tensor_layout()
        self._items = layout.items if layout is not None else None
        self._address, self._size = self._ids.buffer_info()[0], 8 * len(objects)

    def match(self, objects: tuple[object, ...]) -> bool:
        if self._items is None:
            return array("Q", map(id, objects)) == self._ids
        return _memcmp(id(objects) + self._items, self._address, self._size) == 0


def _memcmp_function() -> Callable[[int, int, int], int]:
    function = ctypes.PyDLL(None).memcmp  # keeps the GIL: no thread changes what is compared
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    return function


_memcmp = _memcmp_function()
