"""A compressed graph that runs only on the weights it was made from."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch

from effc.compiler.compress.compressor import Compressed
from effc.runtime.guard import Guard, StorageReference, Unchanged, storage_reference

Boxed = Callable[[list[Any]], Any]


class Watched:
    """Calls ``compressed`` while the arguments at ``places`` are the tensors that were compressed, and hold what they held.

    Otherwise warns once and calls the function that ``exact()`` makes, until `renew` is asked for these tensors or those in their places:
    then ``compress(tensors)`` writes the compressed forms anew, or says why it cannot. ``unchanged``: the native comparison of a compiled
    region (`runtime.guard`).
    """

    _boxed_call = True  # AOTAutograd's convention: one list of arguments, which the callee empties

    def __init__(
        self,
        compressed: Boxed,
        exact: Callable[[], Boxed],
        compress: Callable[[Sequence[torch.Tensor]], str],
        places: Sequence[int],
        tensors: Sequence[torch.Tensor],
        unchanged: Unchanged,
    ) -> None:
        self._compressed, self._make_exact, self._compress = compressed, exact, compress
        single = itemgetter(*places)
        self._sources: Callable[[list[Any]], tuple[torch.Tensor, ...]] = (
            single if len(places) > 1 else lambda arguments: (single(arguments),)
        )
        self._unchanged = unchanged
        self._exact: Boxed | None = None
        self._stale = self._refused = False
        self._guard, self._request = self._guard_of(tuple(tensors)), _renewals.latest
        _ALL.add(self)

    def __call__(self, arguments: list[Any]) -> Any:
        sources = self._sources(arguments)
        if self._stale:
            self._renew(sources)
        if not self._refused and (self._guard.holds(sources) or self._same(sources)):
            return self._compressed(arguments)
        if _renewals.of(sources) > self._request and self._renew(sources):
            return self._compressed(arguments)
        return self._run_exact(arguments)

    def renew(self, storages: set[int]) -> None:
        """Compress anew at the next call, if a source lies in one of ``storages`` (``_cdata``)."""
        if not storages.isdisjoint(self._guard.storages()):
            self._stale = True

    def _renew(self, sources: tuple[torch.Tensor, ...]) -> bool:
        """Compress these; whether that can be."""
        self._stale, self._request = False, _renewals.latest
        reason = self._compress(sources)
        self._refused = bool(reason)
        if reason:
            warnings.warn(f"the new weights are not compressed, the exact model runs: {reason}", stacklevel=3)
            return False
        self._guard = self._guard_of(sources)
        return True

    def _guard_of(self, sources: tuple[torch.Tensor, ...]) -> Guard:
        return Guard(sources, [True] * len(sources), self._unchanged)

    def _same(self, sources: tuple[torch.Tensor, ...]) -> bool:
        """Whether these are new objects over what is watched."""
        found = self._guard_of(sources)
        if not self._guard.covers(found):
            return False
        self._guard = found
        return True

    def _run_exact(self, arguments: list[Any]) -> Any:
        if self._exact is None:
            warnings.warn(
                "these are not the weights that effc compressed, so the exact model runs; effc.refresh(model) compresses them",
                stacklevel=2,
            )
            self._exact = self._make_exact()
        return self._exact(arguments)


def watched(function: Boxed, exact: Callable[[], Boxed], compressed: Compressed, unchanged: Unchanged) -> Watched:
    """``function``, compiled from a graph with ``compressed`` weights; see `Watched`."""
    sources = compressed.sources
    placeholders = list(sources[0].graph.find_nodes(op="placeholder", sort=True))
    tensors = [compressed.values[node] for node in sources]
    return Watched(function, exact, compressed.renew, [placeholders.index(n) for n in sources], tensors, unchanged)


class _Renewals:
    """Which storages `renew` was asked for, by numbers of these requests: what takes a weight's place is known by it."""

    def __init__(self) -> None:
        self.latest = 0
        self._asked: dict[int, tuple[StorageReference, int]] = {}  # a reference keeps the number from being another's

    def ask(self, tensors: Sequence[torch.Tensor]) -> None:
        self.latest += 1
        alive = {key: asked for key, asked in self._asked.items() if not asked[0].expired()}
        new = {s._cdata: (storage_reference(s), self.latest) for s in (t.untyped_storage() for t in tensors)}
        self._asked = alive | new

    def of(self, tensors: Sequence[torch.Tensor]) -> int:
        """The latest request for one of these; 0 where there was none."""
        found = (self._asked.get(t.untyped_storage()._cdata) for t in tensors)
        return max((asked[1] for asked in found if asked is not None), default=0)


_ALL: weakref.WeakSet[Watched] = weakref.WeakSet()
_renewals = _Renewals()


def renew(tensors: Sequence[torch.Tensor]) -> None:
    """Have what was compressed from these tensors compressed anew at the next call."""
    _renewals.ask(tensors)
    storages = {t.untyped_storage()._cdata for t in tensors}
    for watched in list(_ALL):
        watched.renew(storages)
