"""What a pointwise function of one byte is, by evaluating it on all 256 of them.

A quantization that undoes a dequantization is found so whatever both are written in, and exactly: by its numbers, not by its form.
"""

from __future__ import annotations

import numpy as np

from effc.compiler.pipeline.evaluation import Values, argument, evaluate
from effc.compiler.pipeline.graph import Op, Tensor

_BYTES = np.arange(256, dtype=np.uint8).view(np.int8)


class ByteTables:
    """Tables of the tensors of one graph."""

    def __init__(self) -> None:
        self._known: dict[Tensor, tuple[Tensor, Values] | None] = {}

    def of(self, tensor: Tensor) -> tuple[Tensor, Values] | None:
        """The nearest tensor of bytes that ``tensor`` is a pointwise function of, and the function's values at bytes 0 to 255; None
        where it is no such function, or one of its intermediate values is not finite.
        """
        if tensor not in self._known:
            self._known[tensor] = self._find(tensor)
        return self._known[tensor]

    def undoes(self, op: Op) -> Tensor | None:
        """The tensor of bytes that the bytes which ``op`` computes are."""
        if len(op.results) != 1 or op.results[0].dtype != "i8":
            return None
        found = self._apply(op)
        return found[0] if found is not None and np.array_equal(found[1], _BYTES) else None

    def _find(self, tensor: Tensor) -> tuple[Tensor, Values] | None:
        if tensor.dtype == "i8":
            return tensor, _BYTES
        return None if tensor.producer is None else self._apply(tensor.producer)

    def _apply(self, op: Op) -> tuple[Tensor, Values] | None:
        source = argument(op)
        inner = None if source is None else self.of(op.operands[source])
        if inner is None or source is None:
            return None
        values = evaluate(op, {source: inner[1]})
        return None if values is None else (inner[0], values)
