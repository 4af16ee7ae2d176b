"""Embeddings of a dataflow graph by fast random projection.

FastRP (Chen, Sultan, Tian, Chen, Skiena: "Fast and Accurate Network Embeddings via Very Sparse Random Projection", CIKM 2019) adds up
powers of the normalised adjacency matrix times a very sparse random matrix, without ever building a power. Here a node's row of that
matrix depends on its label alone, so that embeddings of different graphs can be compared: alike neighbourhoods of alike kernels lie
near each other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import networkx as nx
import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 32
#: Weights of the first, second, … neighbourhood, the node itself first.
WEIGHTS = (0.5, 1.0, 1.0, 0.5)
#: Exponent of the degree's normalisation: negative, so that nodes which everything meets count for less.
_BETA = -0.5
#: Entries are 0 but for one in so many (Achlioptas, and Li et al.: sqrt(s) * {1, 0, -1}).
_SPARSENESS = 3


def nodes(
    graph: nx.DiGraph, labels: Sequence[str], dimensions: int = DIMENSIONS, weights: Sequence[float] = WEIGHTS
) -> NDArray[np.float64]:
    """``[len(graph), dimensions]``, in the order of the graph's nodes, whose ``labels`` these are. Directions of edges do not count. Each
    neighbourhood's part has rows of length 1, or 0 where there is none.
    """
    position = {node: i for i, node in enumerate(graph)}
    if len(labels) != len(position):
        raise ValueError(f"{len(labels)} labels for {len(position)} nodes")
    edges = np.array([(position[a], position[b]) for a, b in graph.edges], np.intp).reshape(-1, 2)
    ends = np.concatenate([edges, edges[:, ::-1]])
    degree = np.maximum(np.bincount(ends[:, 0], minlength=len(position)), 1).astype(np.float64)
    scale = (degree / max(len(ends), 1)) ** _BETA
    part = np.array([_projected(label, dimensions) for label in labels]).reshape(-1, dimensions)
    found = weights[0] * _unit(part)
    part = part * scale[:, None]
    for weight in weights[1:]:
        moved = np.zeros_like(part)
        np.add.at(moved, ends[:, 0], part[ends[:, 1]])
        part = moved / degree[:, None]
        found = found + weight * _unit(part)
    return found


def whole(graph: nx.DiGraph, labels: Sequence[str], dimensions: int = DIMENSIONS) -> NDArray[np.float64]:
    """``[dimensions]``: the mean of its nodes; zeros of no nodes."""
    rows = nodes(graph, labels, dimensions)
    return rows.mean(axis=0) if len(rows) else np.zeros(dimensions)


def _projected(label: str, dimensions: int) -> NDArray[np.float64]:
    """A label's row of the random matrix: the same everywhere and always."""
    seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "little")
    draws = np.random.default_rng(seed).integers(0, 2 * _SPARSENESS, dimensions)
    signs: NDArray[np.float64] = (draws == 0).astype(np.float64) - (draws == 1)
    return math.sqrt(_SPARSENESS) * signs


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
