"""Between kernels go bytes: dequantizations move behind what only rearranges numbers, and quantizations that undo them vanish.

``concat(dequantize(a), dequantize(b))`` of one scale becomes ``dequantize(concat(a, b))``; so do pads with zero, views, and maxima over
windows (`pools`). A quantization that gives back the bytes of which it is a function is left out (`tables`); one with another
scale stays, a kernel from bytes to bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from effc.compiler.pipeline.graph import Graph, Op, Tensor, is_static, replace_ops
from effc.compiler.pipeline.integers.dequantized import Decoder
from effc.compiler.pipeline.integers.lifted import lift_quantizations
from effc.compiler.pipeline.integers.pools import dequantized, pooled
from effc.compiler.pipeline.integers.tables import ByteTables


def move_codes(graph: Graph) -> None:
    """Rewrite what lies between the kernels of a quantized ``graph``."""
    lift_quantizations(graph)
    moves = _Moves({graph.inputs[i].tensor for i in graph.constants()})
    replace_ops(graph, moves.rewritten, moves.see)


@dataclass
class _Moves:
    """``static``: what depends on parameters alone, which stays as it is: it is computed once."""

    static: set[Tensor]
    decoder: Decoder = field(default_factory=Decoder)
    tables: ByteTables = field(default_factory=ByteTables)

    def see(self, op: Op) -> None:
        if is_static(op, self.static):
            self.static.update(op.results)

    def rewritten(self, op: Op) -> list[Op] | None:
        """What replaces ``op``, if anything does."""
        if is_static(op, self.static):
            return None
        source = self.tables.undoes(op)
        if source is not None:
            return [_same(op, source)]
        if op.kind in ("pad", "concat") or (op.is_view and op.kind != "border"):
            return self._behind(op)
        return pooled(op, self.decoder)

    def _behind(self, op: Op) -> list[Op] | None:
        """``op`` of the codes, dequantized behind it."""
        if op.results[0].dtype not in ("f32", "bf16"):
            return None
        codes = self.decoder.decode(op.results[0])
        if codes is None or codes.zero is None or not codes.scales or any(s.tensor is not None for s in codes.scales):
            return None
        return [*codes.made, dequantized(op, codes.tensor, codes)]


def _same(op: Op, source: Tensor) -> Op:
    """The result of ``op`` as another name of ``source``."""
    made = Op("cast", [source], list(op.results), op.location)
    op.results[0].producer = made
    return made
