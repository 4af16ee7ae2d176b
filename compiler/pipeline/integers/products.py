"""Products of codes of 8 bits, summed in i32: ``sum(a b) - za sum(b) - zb sum(a) + K za zb``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from effc.compiler.ir.expr import product, var
from effc.compiler.pipeline.body_builder import BodyBuilder
from effc.compiler.pipeline.graph import Op, Tensor
from effc.compiler.pipeline.integers.dequantized import Codes, Term, pointwise
from effc.compiler.pipeline.integers.form import Form, nonzero
from effc.compiler.pipeline.views import Index, chain

#: Greatest sum that i32 holds.
_LIMIT = 2**31 - 1
_INTEGERS = ("i8", "i16", "i32", "i64")


class ByteProduct(Form):
    """Both factors are codes."""

    def __init__(
        self,
        op: Op,
        numbers: tuple[int, int],
        codes: tuple[Codes, Codes],
        static: set[Tensor],
        zeros: Mapping[Tensor, str],
    ) -> None:
        super().__init__(op, numbers, static, zeros)
        self.codes = codes

    def run(self) -> list[Op] | str:
        """The operations that replace the contraction, or why there are none."""
        for codes in self.codes:
            self.take(codes)
        sides = list(zip(self.codes, self.numbers, strict=True))
        scales = [t for c, n in sides for t in self.terms(c.scales, n)]
        zeros = [self.terms(c.zeros, n) for c, n in sides]
        checked = [t for z in zeros for t in z if self.known_zero(t)] if self.fixed(scales) else []
        zeros = [[t for t in z if t not in checked] for z in zeros]
        points = product(self.op.dims[i] for i in self.op.reduction_dims).constant
        if not all(t.tensor.dtype in _INTEGERS if t.tensor else t.value == int(t.value) for z in zeros for t in z):
            return "a zero point is no integer"
        if not self.separable([*zeros[0], *zeros[1], *scales, *checked]):
            return "a scale or zero point varies along the sum"
        if points is None:
            return "the number of products in a sum is known only when it runs, so int32 might overflow"
        if points * (255 * 255 if all(map(nonzero, zeros)) else 255 * 128) > _LIMIT:
            return f"a sum of {points} products of bytes might exceed int32"
        b = BodyBuilder()
        factors: list[Tensor] = [c.tensor for c in self.codes]
        wide = [
            b.cast(b.operand(k, "i8"), "i32", unsigned=c.unsigned)
            for k, c in zip(self.numbers, self.codes, strict=True)
        ]
        in_order = factors if self.numbers == (0, 1) else factors[::-1]
        total = self.contraction(in_order, b.body(b.op("arith.muli", *wide)), "i32")
        value = self.read(total, self.op.result_maps[0])
        for one, other in ((0, 1), (1, 0)):
            if nonzero(zeros[one]):
                value = self._without(value, zeros[one], other)
        if all(map(nonzero, zeros)):
            both = self.body.op("arith.muli", self._zero(zeros[0]), self._zero(zeros[1]))
            value = self.body.op(
                "arith.addi", value, self.body.op("arith.muli", both, self.body.constant(points, "i32"))
            )
        whole = self.op.results[0].dtype == "i32"
        return self.finish(value if whole else self.scaled(value, scales, checked))

    def _zero(self, terms: Sequence[Term]) -> int:
        """The sum of ``terms`` in i32."""
        b, fixed = self.body, sum(t.value for t in terms)
        values = [self.value(t, "i32") for t in terms if t.tensor is not None]
        if fixed or not values:
            values.append(b.constant(fixed, "i32"))
        total = values[0]
        for value in values[1:]:
            total = b.op("arith.addi", total, value)
        return total

    def _without(self, value: int, zero: Sequence[Term], other: int) -> int:
        """``value`` less ``zero`` times the sum of the ``other`` factor."""
        b = self.body
        sums, index = self._sums(other)
        if all(t.tensor is None for t in zero) and chain(self.codes[other].tensor)[0] in self.static:
            inner = BodyBuilder()
            fixed = inner.constant(sum(t.value for t in zero), "i32")
            body = inner.body(inner.op("arith.muli", inner.operand(0, "i32"), fixed))
            dims = tuple(var(f"d{k}") for k in range(len(sums.sizes)))
            made = pointwise([sums], [dims], sums.sizes, body, "i32", self.op.location)
            self.made.append(made)
            return b.op("arith.subi", value, self.read(made.results[0], index))
        part = b.op("arith.muli", self.read(sums, index), self._zero(zero))
        return b.op("arith.subi", value, part)

    def _sums(self, which: int) -> tuple[Tensor, Index]:
        """The sums of a factor's codes, and their index over the contraction's dims."""
        op, codes, number = self.op, self.codes[which], self.numbers[which]
        names = {n for e in op.maps[number] for n in e.variables()}
        kept = [i for i in op.parallel_dims if f"d{i}" in names]
        order = [*kept, *op.reduction_dims]
        place = {f"d{i}": var(f"d{k}") for k, i in enumerate(order)}
        amap = tuple(e.substitute(place) for e in op.maps[number])
        b = BodyBuilder()
        body = b.body(b.cast(b.operand(0, "i8"), "i32", unsigned=codes.unsigned))
        result = Tensor("", "i32", tuple(op.dims[i] for i in kept))
        kinds = ("parallel",) * len(kept) + ("reduction",) * len(op.reduction_dims)
        made = Op(
            "generic", [codes.tensor], [result], op.location, tuple(op.dims[i] for i in order), kinds, (amap,),
            (tuple(var(f"d{k}") for k in range(len(kept))),), body, {"captured": 1, "reduce": ("add",)},
        )  # fmt: skip
        result.producer = made
        self.made.append(made)
        return result, tuple(var(f"d{i}") for i in kept)
