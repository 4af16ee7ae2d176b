"""``Classes``: which channels of a graph's tensors stay or go together (a disjoint-set forest), and which have to stay."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Numbers of channels, of any shape.
Labels = NDArray[np.int64]


class Classes:
    """Channels are numbered as they are made. Classes are named by one of their members, their root."""

    def __init__(self) -> None:
        self._parents = np.zeros(0, np.int64)
        self._reasons: dict[int, str] = {}

    def new(self, count: int) -> Labels:
        """``count`` channels, each a class of its own."""
        first = len(self._parents)
        made = np.arange(first, first + count)
        self._parents = np.concatenate([self._parents, made])
        return made

    def roots(self, labels: Labels) -> Labels:
        """The root of each label's class."""
        found = self._parents[labels]
        while True:
            further = self._parents[found]
            if np.array_equal(further, found):
                self._parents[labels] = found
                return found
            found = further

    def join(self, first: Labels, second: Labels) -> None:
        """Each of ``first`` stays or goes with its counterpart in ``second``, of the same shape."""
        ours, theirs = self.roots(first).ravel(), self.roots(second).ravel()
        for a, b in dict.fromkeys(zip(ours.tolist(), theirs.tolist(), strict=True)):
            self._join(self._root(a), self._root(b))

    def join_along(self, labels: Labels, dim: int) -> Labels:
        """All along ``dim`` stay or go together; ``labels`` with that dimension cut to 1."""
        first = labels.take([0], axis=dim)
        self.join(np.broadcast_to(first, labels.shape), labels)
        return first

    def fix(self, labels: Labels, reason: str) -> None:
        """These have to stay; the first ``reason`` counts."""
        for root in np.unique(self.roots(labels)).tolist():
            self._reasons.setdefault(root, reason)

    def reason(self, root: int) -> str:
        """Why the class has to stay, or ``""``."""
        return self._reasons.get(root, "")

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            label = int(self._parents[label])
        return label

    def _join(self, a: int, b: int) -> None:
        if a != b:
            kept, gone = min(a, b), max(a, b)
            self._parents[gone] = kept
            if gone in self._reasons:
                self._reasons.setdefault(kept, self._reasons[gone])
