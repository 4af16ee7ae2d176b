"""A compressed graph that runs only on the weights it was made from."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch

from effc.compiler.compress.compressor import Compressed
from effc.runtime.guard import Guard, Unchanged

Boxed = Callable[[list[Any]], Any]


class Watched:
    """Calls ``compressed`` while the arguments at ``places`` are the tensors that were compressed, and hold what they held.

    Otherwise warns once and calls the function that ``exact()`` makes, until ``renew`` is asked for: then ``compress(tensors)`` writes the
    compressed forms anew, or says why it cannot. ``unchanged``: the native comparison of a compiled region (`runtime.guard`).
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
        self._stale = False
        self._guard = self._guard_of(tuple(tensors))
        _ALL.add(self)

    def __call__(self, arguments: list[Any]) -> Any:
        sources = self._sources(arguments)
        if self._stale:
            self._stale = False
            reason = self._compress(sources)
            if reason:
                warnings.warn(f"the new weights are not compressed, the exact model runs: {reason}", stacklevel=2)
            else:
                self._guard = self._guard_of(sources)
        if self._guard.holds(sources) or self._same(sources):
            return self._compressed(arguments)
        return self._run_exact(arguments)

    def renew(self, storages: set[int]) -> None:
        """Compress anew at the next call, if a source lies in one of ``storages`` (``_cdata``)."""
        if not storages.isdisjoint(self._guard.storages()):
            self._stale = True

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
                "weights have changed since effc compressed them, so the exact model runs; effc.refresh(model) compresses the new ones",
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


_ALL: weakref.WeakSet[Watched] = weakref.WeakSet()


def renew(tensors: Sequence[torch.Tensor]) -> None:
    """Have what was compressed from these tensors compressed anew at the next call."""
    storages = {t.untyped_storage()._cdata for t in tensors}
    for watched in list(_ALL):
        watched.renew(storages)
