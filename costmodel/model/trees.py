"""Boosted trees as arrays: read from LightGBM's text and evaluated by numpy, so that predicting needs neither LightGBM nor its OpenMP.

The text is that of ``Booster.model_to_string`` (version 4 of the format). Only what training here makes is taken: numerical splits, missing
values as NaN, one output. A prediction is the sum of one leaf of each tree, in the order of the trees, as LightGBM's own is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

#: Version of the format.
_VERSION = "v4"
#: Bits of ``decision_type``: a categorical split; missing values go left; and what is missing: nothing, zeros, NaN.
_CATEGORICAL, _LEFT, _MISSING = 1, 2, 12
_NEVER, _ZEROS, _NAN = 0, 4, 8
#: Rows that are evaluated at once: indices and values of all trees then stay in L2.
_CHUNK = 64


@dataclass(frozen=True)
class Forest:
    """``roots``: number of each tree's first node. From node i a row goes to ``children[2i + 1]`` where its value of ``columns[i]`` is at
    most ``limits[i]``, else to ``children[2i]``; leaves lead to themselves and are worth ``values[i]``. Columns are numbered three times:
    with NaN as 0, as -inf, and as it is, which is never at most a limit. ``depth``: steps from a root to its lowest leaf, at most.
    ``gains``: of each feature, of all splits.
    """

    features: tuple[str, ...]
    roots: NDArray[np.int32]
    columns: NDArray[np.int32]
    limits: NDArray[np.float32]
    children: NDArray[np.int32]
    values: NDArray[np.float64]
    depth: int
    gains: NDArray[np.float64]

    @staticmethod
    def parse(text: str) -> Forest:
        """ValueError: it is no such text, or holds what is not taken here."""
        head, *blocks = text.partition("end of trees")[0].split("\nTree=")
        fields = _fields(head)
        if not head.startswith("tree\n") or fields.get("version") != _VERSION:
            raise ValueError(f"no text of LightGBM's trees, version {_VERSION}")
        names = tuple(fields["feature_names"].split()) if "feature_names" in fields else ()
        if fields.get("num_class") != "1" or "average_output" in head or not names or not blocks:
            raise ValueError("not one sum of trees over named features")
        if len(fields.get("tree_sizes", "").split()) != len(blocks):
            raise ValueError(f"{len(blocks)} trees, but not as many sizes of trees")
        trees = [_Tree.parse(block, len(names)) for block in blocks]
        first = np.cumsum([0, *(tree.nodes for tree in trees)])
        gains = np.zeros(len(names))
        for tree in trees:
            np.add.at(gains, tree.features, tree.gains)
        return Forest(
            names,
            roots=first[:-1].astype(np.int32),
            columns=np.concatenate([tree.columns for tree in trees]).astype(np.int32),
            limits=np.concatenate([tree.limits for tree in trees]),
            children=np.concatenate([t.children + at for t, at in zip(trees, first, strict=False)]).astype(np.int32),
            values=np.concatenate([tree.values for tree in trees]),
            depth=max(tree.depth for tree in trees),
            gains=gains,
        )

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """The sum of the leaves of each row. ``rows``: ``[n, len(features)]``, finite or NaN."""
        return predictions([self], rows)[0]

    def sums(self, by_column: NDArray[np.float32], count: int) -> NDArray[np.float64]:
        """Of ``count`` rows, as `_by_column` lays them out."""
        shape = len(self.roots), count
        place = np.arange(count, dtype=np.int32)
        first = self._scaled.get(count)
        if first is None:
            first = self._scaled[count] = self.columns * np.int32(count)
        node = np.broadcast_to(self.roots[:, None], shape).copy()
        for _ in range(self.depth):
            at = first.take(node)
            at += place
            node *= 2
            node += by_column.take(at) <= self.limits.take(node >> 1)
            node = self.children.take(node)
        found: NDArray[np.float64] = np.cumsum(self.values.take(node), axis=0)[
            -1
        ]  # in the order of the trees, unlike a sum
        return found

    @cached_property
    def _scaled(self) -> dict[int, NDArray[np.int32]]:
        """``columns`` times a number of rows, by that number: where the columns begin in rows that are transposed."""
        return {}


def predictions(forests: Sequence[Forest], rows: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """What `Forest.predict` gives, of forests over the same features."""
    for forest in forests:
        if rows.ndim != 2 or rows.shape[1] != len(forest.features):
            raise ValueError(f"rows of shape {rows.shape}, but {len(forest.features)} features")
    found: list[list[NDArray[np.float64]]] = [[] for _ in forests]
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        by_column = _by_column(chunk)
        for forest, parts in zip(forests, found, strict=True):
            parts.append(forest.sums(by_column, len(chunk)))
    return [np.concatenate(parts) if parts else np.zeros(0) for parts in found]


def _by_column(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each column three times, as `Forest` numbers them, one after the other."""
    columns = np.ascontiguousarray(rows.T, np.float32)
    missing, nothing, lowest = np.isnan(columns), np.float32(0), np.float32(-np.inf)
    found: NDArray[np.float32] = np.concatenate([
        *(np.where(missing, fill, columns) for fill in (nothing, lowest)), columns
    ]).ravel()  # fmt: skip
    return found


@dataclass(frozen=True)
class _Tree:
    """``nodes``: splits, then leaves; numbers of a tree's own. ``features``, ``gains``: of the splits."""

    nodes: int
    columns: NDArray[np.int64]
    limits: NDArray[np.float32]
    children: NDArray[np.int64]
    values: NDArray[np.float64]
    depth: int
    features: NDArray[np.int64]
    gains: NDArray[np.float64]

    @staticmethod
    def parse(block: str, width: int) -> _Tree:
        fields = _fields(block)
        number = block.partition("\n")[0]
        try:
            leaves = int(fields["num_leaves"])
            splits = leaves - 1
            if int(fields["num_cat"]) or fields.get("is_linear", "0") != "0" or leaves < 1:
                raise ValueError("categories, or linear leaves")
            features, kinds = (_integers(fields, name, splits) for name in ("split_feature", "decision_type"))
            sides = [_integers(fields, name, splits) for name in ("right_child", "left_child")]
            limits, gains = (_floats(fields, name, splits) for name in ("threshold", "split_gain"))
            values = _floats(fields, "leaf_value", leaves)
            if ((features < 0) | (features >= width)).any() or not np.isfinite(values).all() or np.isnan(limits).any():
                raise ValueError("a feature that is not there, or a number that is none")
            if (kinds & _CATEGORICAL).any() or ((kinds & _MISSING) == _ZEROS).any() or (kinds & ~15).any():
                raise ValueError("a split that is not numerical")
            children = np.stack(sides, axis=1)
            children = np.where(children < 0, splits + ~children, children)
            depth = _depth(children, splits, leaves)
        except (KeyError, OverflowError, ValueError) as error:
            raise ValueError(f"tree {number}: {error}") from error
        as_nan = np.where(kinds & _LEFT, 1, 2)
        variant = np.where((kinds & _MISSING) == _NAN, as_nan, 0)
        itself = np.repeat(np.arange(splits, splits + leaves), 2)
        return _Tree(
            nodes=splits + leaves,
            columns=np.concatenate([features + width * variant, np.zeros(leaves, np.int64)]),
            limits=np.concatenate([_rounded_down(limits), np.zeros(leaves, np.float32)]),
            children=np.concatenate([children.ravel(), itself]),
            values=np.concatenate([np.zeros(splits), values]),
            depth=depth,
            features=features,
            gains=gains,
        )


def _depth(children: NDArray[np.int64], splits: int, leaves: int) -> int:
    """Of the lowest leaf below node 0; ValueError where the nodes are no tree."""
    reached, level, depth = 1, [0] if splits else [], 0
    seen = {0}
    while level:
        below = [int(c) for node in level for c in children[node]]
        if any(not 0 <= c < splits + leaves for c in below) or len(seen | {*below}) != len(seen) + len(below):
            raise ValueError("its nodes are no tree")
        seen.update(below)
        reached, depth = reached + len(below), depth + 1
        level = [c for c in below if c < splits]
    if reached != splits + leaves:
        raise ValueError("nodes that nothing leads to")
    return depth


def _rounded_down(limits: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 that is no more: against float32 it decides as the float64 does."""
    with np.errstate(over="ignore"):
        near = limits.astype(np.float32)
    return np.where(near > limits, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)


def _fields(block: str) -> Mapping[str, str]:
    pairs = (line.partition("=") for line in block.splitlines())
    return {name: value for name, sign, value in pairs if sign}


def _integers(fields: Mapping[str, str], name: str, count: int) -> NDArray[np.int64]:
    return np.array([int(n) for n in _parts(fields, name, count)], np.int64)


def _floats(fields: Mapping[str, str], name: str, count: int) -> NDArray[np.float64]:
    return np.array([float(n) for n in _parts(fields, name, count)], np.float64)


def _parts(fields: Mapping[str, str], name: str, count: int) -> Sequence[str]:
    found = fields[name].split() if count else []
    if len(found) != count:
        raise ValueError(f"{name} has {len(found)} numbers for {count}")
    return found
