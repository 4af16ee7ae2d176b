"""What contractions of codes share: a contraction of other operands, and an epilogue that scales its sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from effc.compiler.ir.expr import var
from effc.compiler.pipeline.body_builder import BodyBuilder
from effc.compiler.pipeline.graph import Body, Op, Tensor, is_static
from effc.compiler.pipeline.integers.dequantized import Codes, Term, origin, pointwise
from effc.compiler.pipeline.views import Index


class Form:
    """What both rewrites share: a contraction of other operands, and an epilogue over its results. ``static``: what depends on parameters
    alone; ``zeros``: parameters that are 0, with their names.
    """

    def __init__(self, op: Op, numbers: tuple[int, int], static: set[Tensor], zeros: Mapping[Tensor, str]) -> None:
        self.op, self.numbers, self.static, self.zeros = op, numbers, static, zeros
        self.made: list[Op] = []
        self.place = {str(e): k for k, e in enumerate(op.result_maps[0])}
        self.body = BodyBuilder()
        self.operands: list[Tensor] = []
        self.maps: list[Index] = []

    def take(self, codes: Codes) -> None:
        """Have what computes ``codes`` and their terms made, and know which of that depends on parameters alone."""
        self.made += codes.made
        for op in codes.made:
            if is_static(op, self.static):
                self.static.update(op.results)

    def contraction(
        self, factors: Sequence[Tensor], body: Body, dtype: str, more: Sequence[tuple[Tensor, Index]] = ()
    ) -> Tensor:
        """``op`` over ``factors``, in the order of its operands, summed in ``dtype``; ``more`` operands with their indices."""
        op = self.op
        operands, maps = [*factors, *(t for t, _ in more)], (*op.maps[:2], *(index for _, index in more))
        result = Tensor("", dtype, op.results[0].sizes)
        made = Op(
            op.kind, operands, [result], op.location, op.dims, op.iterators, maps, op.result_maps, body,
            {**op.attributes, "captured": len(operands)},
        )  # fmt: skip
        result.producer = made
        self.made.append(made)
        return result

    def separable(self, terms: Sequence[Term]) -> bool:
        """Whether no term varies along the sum."""
        return all(n in self.place for t in terms for e in t.index for n in e.variables() if n[0] == "d")

    def terms(self, found: Sequence[Term], number: int) -> list[Term]:
        """The scales or zeros of a factor, over the contraction's own dims."""
        return [t.at(self.op.maps[number]) for t in found]

    def message(self, tensor: Tensor) -> str:
        """Of the error where a known zero is none any more."""
        name = self.zeros[origin(tensor)]
        return f"{name} was 0 when the model was compiled, and is not now: torch._dynamo.reset() and compile again"

    def known_zero(self, term: Term) -> bool:
        """Whether a term is a parameter that is 0."""
        return term.tensor is not None and origin(term.tensor) in self.zeros

    # -- the epilogue -----------------------------------------------------------------------------------------------
    def read(self, tensor: Tensor, index: Index) -> int:
        """An element of ``tensor``, at an index over the contraction's parallel dims."""
        names = {name: var(f"d{k}") for name, k in self.place.items()}
        self.operands.append(tensor)
        self.maps.append(tuple(e.substitute(names) for e in index))
        return self.body.operand(len(self.operands) - 1, tensor.dtype)

    def value(self, term: Term, dtype: str) -> int:
        if term.tensor is None:
            return self.body.constant(term.value, dtype)
        return self.body.cast(self.read(term.tensor, term.index), dtype)

    def fixed(self, scales: Sequence[Term]) -> list[Term]:
        """Those of ``scales`` that are multiplied with each other when parameters change."""
        return [t for t in scales if t.tensor is not None and t.tensor in self.static]

    def scaled(self, total: int, scales: Sequence[Term], zeros: Sequence[Term] = ()) -> int:
        """``total`` in f32 times all ``scales``; ``zeros``: terms that are checked to be 0, where ``fixed`` ones are computed."""
        b, fixed = self.body, 1.0
        value = b.cast(total, "f32")
        for term in scales:
            fixed *= term.value if term.tensor is None else 1.0
        known = self.fixed(scales)
        if known:
            value = b.op("arith.mulf", value, self.value(self._product(fixed, known, zeros), "f32"))
        elif fixed != 1.0:
            value = b.op("arith.mulf", value, b.constant(fixed, "f32"))
        for term in scales:
            if term.tensor is not None and term not in known:
                value = b.op("arith.mulf", value, self.value(term, "f32"))
        return value

    def _product(self, fixed: float, terms: Sequence[Term], zeros: Sequence[Term]) -> Term:
        """One term for several."""
        parts = [*terms, *zeros]
        names = sorted({n for t in parts for e in t.index for n in e.variables()}, key=lambda n: int(n[1:]))
        own = {name: var(f"d{k}") for k, name in enumerate(names)}
        b = BodyBuilder()
        value = b.constant(fixed, "f32")
        tensors = [t.tensor for t in parts if t.tensor is not None]
        for number, tensor in enumerate(tensors):
            part = b.operand(number, tensor.dtype)
            if number < len(terms):
                value = b.op("arith.mulf", b.cast(part, "f32"), value)
            else:
                b.check(b.equals(part, 0), self.message(tensor))
        maps = [tuple(e.substitute(own) for e in t.index) for t in parts]
        sizes = tuple(self.op.dims[int(n[1:])] for n in names)
        made = pointwise(tensors, maps, sizes, b.body(value), "f32", self.op.location)
        self.made.append(made)
        return Term(0.0, made.results[0], tuple(var(n) for n in names))

    def finish(self, value: int) -> list[Op]:
        """The epilogue takes the contraction's place."""
        result = self.op.results[0]
        made = pointwise(self.operands, self.maps, result.sizes, self.body.body(value), result.dtype, self.op.location)
        made.results = [result]
        result.producer = made
        return [*self.made, made]


def nonzero(terms: Sequence[Term]) -> bool:
    return any(t.tensor is not None for t in terms) or sum(t.value for t in terms) != 0
