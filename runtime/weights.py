"""Derived weights, and the guard that tells, before every call, whether a parameter changed since they were derived.

Three things are compared, in a few microseconds for hundreds of parameters:

1. the tensors that the caller passes are the same Python objects;
2. each still has the storage, data pointer, offset, sizes, strides and version that it had (`tensor_layout`; natively);
3. every `SAMPLE_PERIOD` calls, `SAMPLE_WORDS` words of each parameter's content, for writes that torch does not version:
   through ``.data`` or ``.detach().numpy()``, and to inference tensors. What changes none of those words is seen by ``refresh``.

A step of any torch optimizer counts as a change too: the fused ones write without a new version.

Nothing of the user's is kept alive, and no weak reference is taken to his tensors (``swap_tensors`` refuses those). Their storages
are held weakly instead, by ``StorageWeakRef``: a storage's address is not used again while one exists, so equal addresses are
the same storage.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import weakref
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Protocol

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from effc.compiler.ir.program import Program
from effc.compiler.ir.slots import Layout
from effc.runtime.derive import derive
from effc.runtime.tensor_layout import Entry, tensor_layout

SAMPLE_PERIOD = 64
SAMPLE_WORDS = 32
_FULL = (1 << 64) - 1
_KEPT_STATES = (
    256  # of a block that a deep model repeats, compiled once; a caller's short-lived aliases push out older ones
)
Fingerprint = tuple[object, ...]
Unchanged = Callable[[int, int], int]


class StorageReference(Protocol):
    """A ``StorageWeakRef``."""

    def expired(self) -> bool: ...


_storage_reference: Callable[[torch.UntypedStorage], StorageReference] = StorageWeakRef


class Prepare(Protocol):
    """The executable of ``Program.prepare``."""

    program: Program

    def __call__(self, symbols: Sequence[int], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]: ...

    def trim(self) -> None: ...


class _Table:
    """Entries for ``effc_unchanged`` in native memory."""

    def __init__(self, entries: Sequence[Entry], unchanged: Unchanged) -> None:
        self._words = array("Q", [word for entry in entries for word in entry])
        self._address, self._count, self._unchanged = self._words.buffer_info()[0], len(entries), unchanged

    def holds(self) -> bool:
        return self._unchanged(self._address, self._count) == self._count


@dataclass(frozen=True)
class _Slow:
    """A parameter whose metadata Python must compare; ``place`` among the parameters."""

    place: int
    versioned: bool
    known: Fingerprint


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
    function = ctypes.PyDLL(None).memcmp
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    return function


_memcmp = _memcmp_function()


@dataclass(eq=False)
class State:
    """Derived weights of one set of parameters.

    ``pointers``: (slot, address) of the parameters and of the derived tensors. ``sources``, ``source_storages``: of the parameters from
    which something is derived. ``serial``: a number that no other state has.
    """

    pointers: list[tuple[int, int]]
    identities: _Identities
    sources: list[Fingerprint]
    source_storages: list[StorageReference]
    storages: list[StorageReference]
    metadata: _Table
    slow: list[_Slow]
    content: _Table
    derived: list[torch.Tensor] = field(default_factory=list)
    calls: int = 0
    serial: int = field(default_factory=itertools.count(1).__next__)

    def intact(self) -> bool:
        """Whether the sources' memory lives and its sampled content is as it was."""
        return self.alive() and self.content.holds()

    def alive(self) -> bool:
        return not any(storage.expired() for storage in self.source_storages)

    def holds(self, parameters: tuple[torch.Tensor, ...]) -> bool:
        """Whether ``parameters`` are the tensors that the state was derived from, and nothing that is watched has changed."""
        if (
            not self.identities.match(parameters)
            or not self.metadata.holds()
            or any(fingerprint(parameters[s.place], s.versioned) != s.known for s in self.slow)
        ):
            return False
        self.calls += 1
        return self.calls % SAMPLE_PERIOD != 0 or self.content.holds()


class Weights:
    """The derived weights of a program, for each set of parameters that it is called with."""

    def __init__(self, program: Program, prepare: Prepare | None, unchanged: int) -> None:
        self.program, self._prepare = program, prepare
        self.inputs = [i for i, given in enumerate(program.inputs) if given.param]
        self._sources = self._find_sources()
        self._layout = Layout.of(program)
        self._unchanged: Unchanged = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(unchanged)
        single = itemgetter(*self.inputs)
        self._parameters = single if len(self.inputs) > 1 else lambda tensors: (single(tensors),)
        self._lock = threading.Lock()
        self._states: dict[
            int, State
        ] = {}  # by the identity of the first parameter: several models may share one program
        self.derivations = 0
        _watch_optimizers()
        _ALL.add(self)

    def __len__(self) -> int:
        """Sets of living parameters with derived weights."""
        return sum(state.alive() for state in list(self._states.values()))

    def _find_sources(self) -> list[bool]:
        """For each parameter, whether something is derived from it: of the others only the place matters, not the content."""
        read = {index for kind, index in (d.source for d in self.program.derived) if kind == "input"}
        if self._prepare is not None:
            names = {given.param for given in self._prepare.program.inputs}
            read |= {i for i in self.inputs if self.program.inputs[i].param in names}
        if not self.inputs or not read <= set(self.inputs):
            raise ValueError("a weight is derived from an input that is no parameter")
        return [i in read for i in self.inputs]

    @property
    def note(self) -> str:
        """For the report: empty, or why comparing the weights is slow."""
        if tensor_layout() is None:
            return "the memory layout of torch's tensors was not recognised: comparing weights takes about 2 µs each, every call"
        return ""

    def current(self, tensors: Sequence[torch.Tensor]) -> State:
        """The state for the parameters among ``tensors``, derived anew where any of them changed."""
        parameters = self._parameters(tensors)
        state = self._states.get(id(parameters[0]))
        if state is not None and state.holds(parameters):
            return state
        with self._lock:
            return self._renew(tensors, parameters, state)

    def clear(self) -> None:
        """Forget everything derived."""
        with self._lock:
            self._states.clear()

    def forget(self, storages: set[int]) -> None:
        """Forget what was derived from any of these storages (``_cdata``)."""
        with self._lock:
            self._drop(lambda state: any(f[0] in storages for f in state.sources))

    def _drop(self, unwanted: Callable[[State], bool]) -> None:
        for key in [key for key, state in self._states.items() if unwanted(state)]:
            del self._states[key]

    def _renew(
        self, tensors: Sequence[torch.Tensor], parameters: tuple[torch.Tensor, ...], failed: State | None
    ) -> State:
        self._drop(lambda state: not state.alive())
        known = self._states.get(id(parameters[0]))
        if known is not None and known is not failed and known.holds(parameters):
            return known  # another thread was faster
        state = self._snapshot(parameters)  # before deriving: a write that comes in between counts as a change
        alias = next((s for s in self._states.values() if s.sources == state.sources and s.intact()), None)
        # New objects over the same storages at the same versions (detached aliases, say) need no new derivation, nor does
        # a parameter that moved and has nothing derived from it.
        state.derived = alias.derived if alias is not None else self._derive(tensors)
        state.pointers += [(self._layout.derived + k, d.data_ptr()) for k, d in enumerate(state.derived)]
        self._states.pop(id(parameters[0]), None)
        self._states[id(parameters[0])] = state
        while len(self._states) > _KEPT_STATES:
            del self._states[next(iter(self._states))]
        return state

    def _derive(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.derivations += 1
        prepared: list[torch.Tensor] = []
        if self._prepare is not None:
            by_name = {given.param: tensors[i] for i, given in enumerate(self.program.inputs) if given.param}
            prepared = self._prepare((), [by_name[given.param] for given in self._prepare.program.inputs])
            self._prepare.trim()
        sources = {"input": tensors, "prepared": prepared}
        return [derive(d.function, sources[d.source[0]][d.source[1]], dict(d.attributes)) for d in self.program.derived]

    def _snapshot(self, parameters: tuple[torch.Tensor, ...]) -> State:
        """A state without its derived weights."""
        sources = [p for p, is_source in zip(parameters, self._sources, strict=True) if is_source]
        entries, slow = self._metadata(parameters)
        return State(
            pointers=[(self._layout.inputs + i, p.data_ptr()) for i, p in zip(self.inputs, parameters, strict=True)],
            identities=_Identities(parameters),
            sources=[fingerprint(p, versioned=True) for p in sources],
            source_storages=[_storage_reference(p.untyped_storage()) for p in sources],
            storages=[_storage_reference(p.untyped_storage()) for p in parameters],
            metadata=_Table(entries, self._unchanged),
            slow=slow,
            content=_Table([entry for p in sources for entry in content_sample(p)], self._unchanged),
        )

    def _metadata(self, parameters: Sequence[torch.Tensor]) -> tuple[list[Entry], list[_Slow]]:
        """What to compare natively, and what through Python."""
        layout = tensor_layout()
        entries: list[Entry] = []
        slow = []
        for i, (p, is_source) in enumerate(zip(parameters, self._sources, strict=True)):
            found = layout.entries(p, is_source) if layout is not None else None
            if found is None:
                slow.append(_Slow(i, is_source, fingerprint(p, is_source)))
            else:
                entries += found
        return entries, slow


_ALL: weakref.WeakSet[Weights] = weakref.WeakSet()


@lru_cache(maxsize=1)
def _watch_optimizers() -> None:
    """Have every optimizer step forget what was derived from the parameters it wrote."""

    def stepped(optimizer: Optimizer, args: object, kwargs: object) -> None:
        holders = [weights for weights in list(_ALL) if weights._states]
        if holders:
            written = {p.untyped_storage()._cdata for group in optimizer.param_groups for p in group["params"]}
            for weights in holders:
                weights.forget(written)

    register_optimizer_step_post_hook(stepped)


def _after_fork() -> None:
    """A thread that held a lock does not exist in the child."""
    for weights in list(_ALL):
        weights._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def fingerprint(tensor: torch.Tensor, versioned: bool) -> Fingerprint:
    """What changes when torch knows of a change, with ``versioned`` also of the content; inference tensors have no version."""
    version = tensor._version if versioned and not tensor.is_inference() else -1
    storage = tensor.untyped_storage()._cdata
    return (storage, tensor.data_ptr(), version, tensor.shape, tensor.stride(), tensor.dtype)


def content_sample(tensor: torch.Tensor) -> list[Entry]:
    """Words of the tensor's content, evenly spread, first and last included; whole aligned words, so no page is overstepped."""
    if tensor.numel() == 0:
        return []
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start, size = tensor.data_ptr(), span * tensor.element_size()
    first, last = start // 8, (start + size - 1) // 8
    count = min(SAMPLE_WORDS, last - first + 1)
    places = [first + (last - first) * k // max(count - 1, 1) for k in range(count)]
    entries = []
    for place in places:
        mask = _FULL
        if 8 * place < start:
            mask &= _FULL << 8 * (start - 8 * place)
        if 8 * place + 8 > start + size:
            mask &= _FULL >> 8 * (8 * place + 8 - start - size)
        mask &= _FULL
        entries.append((8 * place, mask, ctypes.c_uint64.from_address(8 * place).value & mask))
    return entries
