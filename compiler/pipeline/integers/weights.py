"""Products with a parameter that stays codes: its scales are taken out of the sum, or, where they vary along it, into the kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod

from effc.compiler.ir.expr import const, var
from effc.compiler.ir.formats import Format
from effc.compiler.pipeline.body_builder import BodyBuilder
from effc.compiler.pipeline.graph import GraphInput, Op, Tensor
from effc.compiler.pipeline.integers.dequantized import Codes, Term, pointwise, unconverted
from effc.compiler.pipeline.integers.form import Form


class CodedWeight(Form):
    """A parameter is codes: ``weight`` is its number among the operands, they, and their format where it is less than a byte; ``book``: the
    table in which they are positions; ``rows``: the other factor as signed bytes without a zero point, where it is multiplied as such.
    """

    def __init__(
        self,
        op: Op,
        numbers: tuple[int, int],
        weight: tuple[int, Codes, Format | None],
        static: set[Tensor],
        zeros: Mapping[Tensor, str],
        book: GraphInput | None = None,
        rows: Codes | None = None,
    ) -> None:
        super().__init__(op, numbers, static, zeros)
        self.number, self.codes, self.format = weight
        self.book, self.rows = book, rows

    def run(self) -> list[Op] | str:
        """The operations that replace the contraction, or why there are none."""
        op = self.op
        self.take(self.codes)
        scales, zeros = (self.terms(found, self.number) for found in (self.codes.scales, self.codes.zeros))
        if self.rows is not None:
            self.take(self.rows)
            scales += self.terms(self.rows.scales, 1 - self.number)
        checked = [t for t in zeros if self.known_zero(t)]
        zeros = [t for t in zeros if t not in checked and (t.tensor is not None or t.value)]
        if not self._has_kernel():
            return "its sizes are known only when it runs, or it has one column, or one product a sum"
        if self.book is not None:
            if self.format is None:
                return "its codes are not known to lie in its codebook"
            known = self.fixed(scales)
            if not known:
                return "its codebook has no scale that is a parameter"
            scales = [self._with_book(t, self.book) if t is known[0] else t for t in scales]
        if self.separable([*scales, *checked]) and not zeros and (self.fixed(scales) or not checked):
            total = self._sum([])
            return self.finish(self.scaled(self.read(total, op.result_maps[0]), scales, checked))
        inside = [t for t in scales if not self.separable([t])]
        outside = [t for t in scales if t not in inside]
        if len(inside) > 1 or len(zeros) > 1:
            return "several scales, or several zero points, vary along the sum"
        if any(t.tensor is None for t in zeros):
            return "its zero point is a number in the model's code"
        if not inside:  # a zero point alone: with a scale of its grain, or of 1
            inside, outside = outside[:1], outside[1:]
        if len(inside) != 1 or any(t.tensor is None or t.tensor not in self.static for t in [*inside, *zeros]):
            return "its scale or zero point is no parameter"
        if any(t.index != inside[0].index for t in checked):
            return "its scale and its zero point are of different grain"
        scale = self._checked(inside[0], checked) if checked else inside[0]
        total = self._sum([*map(self._in_bytes, zeros), scale])
        return self.finish(self.scaled(self.read(total, op.result_maps[0]), outside))

    def _in_bytes(self, zero: Term) -> Term:
        """A zero point as the byte that it was: a quarter to read, and kernels can subtract it from integers."""
        found = None if zero.tensor is None else unconverted(zero.tensor)
        if found is None:
            return zero
        tensor, views = found
        self.made += views
        self.static.update(op.results[0] for op in views)
        self.static.add(tensor)
        return Term(0.0, tensor, zero.index)

    def _has_kernel(self) -> bool:
        """Whether `codegen` packs such a factor: of known sizes, of more than one column and more than one element of the sum."""
        op = self.op
        names = {n for e in op.maps[self.number] for n in e.variables()}
        columns = [op.dims[i].constant for i in op.parallel_dims if f"d{i}" in names]
        points = [op.dims[i].constant for i in op.reduction_dims]
        if None in columns or None in points:
            return False
        return prod(n or 0 for n in columns) > 1 and prod(n or 0 for n in points) > 1

    def _sum(self, grains: Sequence[Term]) -> Tensor:
        """The contraction with the codes; ``grains``: a zero point and a scale, or a scale, that vary along the sum."""
        op = self.op
        factors = list(op.operands[:2])
        factors[self.number] = self.codes.tensor
        if self.rows is not None:
            factors[1 - self.number] = self.rows.tensor
        b = BodyBuilder()
        values = []
        for k in self.numbers:
            value = b.operand(k, factors[k].dtype)
            if k != self.number:
                values.append(b.cast(value, "f32"))
                continue
            if self.format is not None:
                decode = self.format.instr(value)
                value = b.op(decode.op, *decode.args, dtype=decode.dtype, attributes=decode.attributes)
            value = b.cast(value, "f32", unsigned=self.codes.unsigned)
            for number, term in enumerate(grains):
                assert term.tensor is not None, "run has seen to it"
                grain = b.cast(b.operand(2 + number, term.tensor.dtype), "f32")
                value = b.op("arith.mulf" if number == len(grains) - 1 else "arith.subf", value, grain)
            values.append(value)
        more = [(t.tensor, t.index) for t in grains if t.tensor is not None]
        return self.contraction(factors, b.body(b.op("arith.mulf", *values)), "f32", more)

    def _with_book(self, scale: Term, book: GraphInput) -> Term:
        """``scale``, with a check that the codebook is what it was when the model was compiled."""
        assert scale.tensor is not None, "run has seen to it"
        b = BodyBuilder()
        value = b.operand(0, scale.tensor.dtype)
        same = []
        for number, known in enumerate(book.values):
            position = const(number)
            at = b.op("index", dtype="i64", attributes=(("expr", position),))
            found = b.op("extract", at, dtype=book.tensor.dtype, attributes=(("number", 0), ("indices", (position,))))
            same.append(b.equals(found, known))
        whole = reduce(lambda one, other: b.op("arith.andi", one, other), same)
        b.check(
            whole,
            f"{book.param} is another codebook than when the model was compiled: torch._dynamo.reset() and compile again",
        )
        dims = tuple(var(f"d{k}") for k in range(len(scale.tensor.sizes)))
        made = pointwise(
            [scale.tensor], [dims], scale.tensor.sizes, b.body(value), scale.tensor.dtype, self.op.location
        )
        made.operands.append(book.tensor)
        self.made.append(made)
        self.static.add(made.results[0])
        return Term(0.0, made.results[0], scale.index)

    def _checked(self, scale: Term, zeros: Sequence[Term]) -> Term:
        """``scale``, with a check that ``zeros`` of the same index are 0."""
        assert scale.tensor is not None, "run has seen to it"
        b, tensors = BodyBuilder(), [scale.tensor, *(t.tensor for t in zeros if t.tensor is not None)]
        value = b.cast(b.operand(0, scale.tensor.dtype), "f32")
        for number, tensor in enumerate(tensors[1:], 1):
            b.check(b.equals(b.operand(number, tensor.dtype), 0), self.message(tensor))
        dims = tuple(var(f"d{k}") for k in range(len(scale.tensor.sizes)))
        made = pointwise(tensors, [dims] * len(tensors), scale.tensor.sizes, b.body(value), "f32", self.op.location)
        self.made.append(made)
        return Term(0.0, made.results[0], scale.index)
