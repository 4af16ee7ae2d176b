"""Where the taps of one convolution lie among those of another, and kernels moved there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from effc.compiler.capture.nodes import made
from effc.compiler.capture.scales import is_plain_convolution

_aten = torch.ops.aten


@dataclass(frozen=True)
class Taps:
    """Of each spatial dimension: tap ``i`` of a kernel is tap ``first + i * step`` of another."""

    first: tuple[int, ...]
    step: tuple[int, ...]

    @staticmethod
    def within(node: Node, frame: Node) -> Taps | None:
        """Of ``node``, a convolution or its input itself, among those of the convolution ``frame``; None where a tap has no place there, or
        the two differ in more than their windows.

        A result at ``o`` reads the input at ``o * stride - padding + i * dilation``.
        """
        x, _, _, stride, padding, dilation, *_ = frame.args
        groups: Any = frame.args[-1]
        channels, per_group, *sizes = weight_shape(frame)
        rank = len(sizes)
        if node is x:
            if channels != per_group * groups or any(s != 1 for s in _each(stride, rank)):
                return None
            kernel, start, spread = [1] * rank, [0] * rank, [1] * rank
        elif is_plain_convolution(node) and node.args[0] is x and node.args[-1] == groups:
            if _each(node.args[3], rank) != _each(stride, rank):
                return None
            kernel = list(weight_shape(node)[2:])
            start, spread = _each(node.args[4], rank), _each(node.args[5], rank)
        else:
            return None
        first, step = list[int](), list[int]()
        for k, p, d, size, low, by in zip(
            kernel, start, spread, sizes, _each(padding, rank), _each(dilation, rank), strict=True
        ):
            if (low - p) % by or (k > 1 and d % by):
                return None
            first.append((low - p) // by)
            step.append(d // by if k > 1 else 1)
            if first[-1] < 0 or first[-1] + (k - 1) * step[-1] >= size:
                return None
        return Taps(tuple(first), tuple(step))


def weight_shape(convolution: Node) -> torch.Size:
    """``[channels, channels of a group, window…]``."""
    weight = convolution.args[1]
    assert isinstance(weight, Node), "a convolution's weight is a tensor"
    shape: torch.Size = weight.meta["val"].shape
    return shape


def _each(value: Any, rank: int) -> list[int]:
    """One number for each dimension; ATen takes one for all too."""
    found = [int(v) for v in (value if isinstance(value, Sequence) else [value])]
    return found * rank if len(found) == 1 else found


def moved_taps(graph: Graph, weights: Node, taps: Taps, sizes: Sequence[int]) -> Node:
    """``weights`` [out, in, k…] as a kernel [out, in, *sizes] with zeros at all other taps."""
    for dim, (first, step, size) in enumerate(zip(taps.first, taps.step, sizes, strict=True), 2):
        shape = list(weights.meta["val"].shape)
        if step > 1:
            behind = len(shape) - dim - 1
            apart = made(graph, _aten.unsqueeze.default, (weights, dim + 1))
            apart = made(graph, _aten.constant_pad_nd.default, (apart, [0, 0] * behind + [0, step - 1], 0.0))
            shape[dim] *= step
            weights = made(graph, _aten.reshape.default, (apart, shape))
        if shape[dim] != size:
            behind = len(shape) - dim - 1
            around = [0, 0] * behind + [first, size - first - shape[dim]]
            weights = made(graph, _aten.constant_pad_nd.default, (weights, around, 0.0))
    return weights


def diagonal(graph: Graph, factors: Node, shape: Sequence[int]) -> Node:
    """The kernel [out, in / groups, 1…] of a convolution of as many channels as ``shape`` says that multiplies each by its ``factors``.

    In a row-major square of ``n`` x ``n`` elements those on the diagonal lie ``n + 1`` apart.
    """
    channels, n = shape[0], shape[1]
    apart = made(graph, _aten.reshape.default, (factors, [channels // n, n, 1]))
    apart = made(graph, _aten.constant_pad_nd.default, (apart, [0, n], 0.0))
    flat = made(graph, _aten.reshape.default, (apart, [channels // n, n * (n + 1)]))
    square = made(graph, _aten.slice.Tensor, (flat, 1, 0, n * n))
    return made(graph, _aten.reshape.default, (square, [channels, n, *[1] * (len(shape) - 2)]))
