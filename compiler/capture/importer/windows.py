"""What convolutions of all kinds share: the window that moves over the image, the product that is summed, groups of channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import Builder
from effc.compiler.capture.importer.shapes import reshape
from effc.compiler.capture.importer.types import Scalar, Size, Tensor, simplify
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import as_expr


@dataclass(frozen=True)
class Window:
    """One number for each spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]


def per_dimension(values: Any, n: int) -> tuple[int, ...]:
    values = [values] if isinstance(values, int) else list(values)
    if not all(isinstance(v, int) for v in values):
        raise UnsupportedError("symbolic strides, padding or dilation")
    return tuple(values * n if len(values) == 1 else values)


def moving(start: str, stride: int, tap: str, dilation: int) -> str:
    """The place that a window's tap reads: ``start * stride + tap * dilation``."""
    return f"{scaled(start, stride)} + {scaled(tap, dilation)}"


def scaled(dim: str, factor: int) -> str:
    return dim if factor == 1 else f"{dim} * {factor}"


def times(a: Size, c: int, offset: int = 0) -> Size:
    return simplify(as_expr(a) * c + offset)


def multiply_add(dtype: torch.dtype) -> Any:
    def function(body: Body, a: Scalar, c: Scalar, accumulator: Scalar) -> Scalar:
        return body.add(body.mul(body.cast(a, dtype), body.cast(c, dtype)), accumulator)

    return function


def split_channels(b: Builder, x: Tensor, dim: int, groups: int) -> Tensor:
    size = x.sizes[dim]
    if not isinstance(size, int):
        raise UnsupportedError("a grouped convolution with symbolic channels")
    return reshape(b, x, (*x.sizes[:dim], groups, size // groups, *x.sizes[dim + 1 :]))
