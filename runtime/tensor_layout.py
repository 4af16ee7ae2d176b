"""Where a tensor keeps its storage, sizes and version, so that 300 parameters are compared in microseconds, not milliseconds.

The offsets are found by experiment when first needed, not assumed: known values are searched for in the memory of tensors made for
it. ``/proc/self/mem`` is read for that, which reports a bad address instead of crashing. Several tensors must agree on exactly one
offset each, or `tensor_layout` gives None and the caller compares through Python.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch

#: Tensors of more dimensions keep their sizes in memory of their own (``C10_SIZES_AND_STRIDES_MAX_INLINE_SIZE``).
MAX_INLINE_RANK = 5

_OBJECT_WORDS, _IMPL_WORDS, _STORAGE_WORDS, _COUNTER_WORDS = 16, 32, 16, 8
_FULL = (1 << 64) - 1
_T = TypeVar("_T")
Entry = tuple[int, int, int]  # address, mask, expected word


@dataclass(frozen=True)
class TensorLayout:
    """Byte offsets: ``items`` in a tuple, ``impl`` in a tensor's Python object, ``data`` in StorageImpl, ``version`` in
    VersionCounter, the others in TensorImpl.
    """

    items: int
    impl: int
    storage: int
    data: int
    storage_offset: int
    sizes: int
    counter: int
    version: int

    def entries(self, tensor: torch.Tensor, versioned: bool) -> list[Entry] | None:
        """What must stay as it is, with ``versioned`` also the version. None: too many dimensions.

        In this order no address is read before what proves it valid.
        Valid while the tensor's Python object lives and a ``StorageWeakRef`` keeps its storage's address from other use.
        """
        rank = tensor.dim()
        if rank > MAX_INLINE_RANK:
            return None
        impl, storage = tensor._cdata, tensor.untyped_storage()._cdata
        counter = 0 if tensor.is_inference() else _word(impl + self.counter)
        found = [
            (id(tensor) + self.impl, _FULL, impl),
            (impl + self.storage, _FULL, storage),
            (storage + self.data, _FULL, tensor.untyped_storage().data_ptr()),
            (impl + self.storage_offset, _FULL, int(tensor.storage_offset())),
            (impl + self.sizes, _FULL, rank),
            (impl + self.counter, _FULL, counter),
        ]
        strides = self.sizes + 8 * (1 + MAX_INLINE_RANK)
        for i, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            found += [(impl + self.sizes + 8 * (1 + i), _FULL, size), (impl + strides + 8 * i, _FULL, stride)]
        if counter and versioned:
            found.append(word32(counter + self.version, tensor._version))
        return found


def word32(address: int, value: int) -> Entry:
    """An entry for a 32-bit word, by the aligned 64-bit word around it."""
    shift = 8 * (address % 8)
    return address - address % 8, 0xFFFFFFFF << shift, value << shift


@lru_cache(maxsize=1)
def tensor_layout() -> TensorLayout | None:
    """The layout of this build of torch, found once; None where it cannot be found with certainty."""
    try:
        with torch.inference_mode(False):
            return _search()
    except (OSError, _NotFoundError):
        return None


def _search() -> TensorLayout | None:
    samples = list(_samples())
    triples = [tuple(samples[i : i + 3]) for i in range(3)]
    counter, version = _only(_version_candidates(t) for t in samples)
    layout = TensorLayout(
        items=_only(_item_offsets(t) for t in triples),
        impl=_only(_offsets(_words(id(t), _OBJECT_WORDS), t._cdata) for t in samples),
        storage=_only(_offsets(_impl(t), t.untyped_storage()._cdata) for t in samples),
        data=_only(_offsets(_storage(t), t.untyped_storage().data_ptr()) for t in samples),
        storage_offset=_only(_offsets(_impl(t), int(t.storage_offset())) for t in samples),
        sizes=_only(_size_offsets(t) for t in samples),
        counter=counter,
        version=version,
    )
    return layout if all(_holds(layout, t) for t in _samples()) else None


class _NotFoundError(Exception):
    """No offset, or several, fit every sample."""


def _samples() -> Iterator[torch.Tensor]:
    """Tensors whose sizes, strides and offsets are all different."""
    for rank in range(1, MAX_INLINE_RANK + 1):
        sizes = [3, 5, 7, 11, 13][:rank]
        start = 1009 + 17 * rank
        elements = start + 3 * 5 * 7 * 11 * 13
        # A borrowed buffer too: torch's own memory has the same address twice in its StorageImpl, as data and as deleter's context.
        for i, base in enumerate(
            (torch.zeros(elements), torch.frombuffer(bytearray(4 * elements), dtype=torch.float32))
        ):
            strides = [2 + i + k * k for k in range(rank)]
            yield base.as_strided(sizes, strides, start)
            yield torch.nn.Parameter(base.as_strided(sizes, strides, start))


def _item_offsets(objects: tuple[object, ...]) -> set[int]:
    """Where a tuple keeps its items."""
    words = _words(id(objects), _OBJECT_WORDS)
    ids = tuple(map(id, objects))
    return {8 * i for i in range(len(words)) if words[i : i + len(ids)] == ids}


def _size_offsets(t: torch.Tensor) -> set[int]:
    """Where the rank, the sizes, and after room for five, the strides stand."""
    words, rank = _impl(t), t.dim()
    return {
        8 * i
        for i in range(len(words) - 2 * MAX_INLINE_RANK)
        if words[i] == rank
        and list(words[i + 1 : i + 1 + rank]) == list(t.shape)
        and list(words[i + 1 + MAX_INLINE_RANK : i + 1 + MAX_INLINE_RANK + rank]) == list(t.stride())
    }


def _version_candidates(t: torch.Tensor) -> set[tuple[int, int]]:
    """Offsets of the pointer to the version counter, and of the version in it: the one 32-bit word that follows in-place writes."""
    found = set()
    for i, pointer in enumerate(_impl(t)):
        try:
            before = _words(pointer, _COUNTER_WORDS, "I")
            with torch.no_grad():
                t.add_(0).add_(0).add_(0)
            after = _words(pointer, _COUNTER_WORDS, "I")
        except OSError:
            continue
        changes = [(4 * k, b - a) for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        if len(changes) == 1 and changes[0][1] == 3 and after[changes[0][0] // 4] == t._version:
            found.add((8 * i, changes[0][0]))
    return found


def _holds(layout: TensorLayout, t: torch.Tensor) -> bool:
    """Whether the entries hold for ``t``, and no longer after an in-place write."""

    def unchanged(entries: list[Entry]) -> bool:
        return all(_word(address) & mask == expected for address, mask, expected in entries)

    entries = layout.entries(t, versioned=True)
    if entries is None or not unchanged(entries):
        return False
    with torch.no_grad():
        t.mul_(1)
    return not unchanged(entries)


def _only(candidates: Iterable[set[_T]]) -> _T:
    """The one member that all sets share."""
    common = set.intersection(*candidates)
    if len(common) != 1:
        raise _NotFoundError
    return common.pop()


def _offsets(words: Sequence[int], wanted: int) -> set[int]:
    return {8 * i for i, word in enumerate(words) if word == wanted}


def _impl(t: torch.Tensor) -> tuple[int, ...]:
    return _words(t._cdata, _IMPL_WORDS)


def _storage(t: torch.Tensor) -> tuple[int, ...]:
    return _words(t.untyped_storage()._cdata, _STORAGE_WORDS)


def _words(address: int, count: int, code: str = "Q") -> tuple[int, ...]:
    """Words of this process's memory; OSError where the address is not mapped or memory may not be read that way."""
    form = f"<{count}{code}"
    if not 0 < address < 1 << 47:
        raise OSError(f"{address:#x} is no user address")
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        data = os.pread(memory.fileno(), struct.calcsize(form), address)
    if len(data) < struct.calcsize(form):
        raise OSError(f"memory at {address:#x} ends early")
    return struct.unpack(form, data)


def _word(address: int) -> int:
    return _words(address, 1)[0]
