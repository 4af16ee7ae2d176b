"""Contractions of dequantized factors run in integers: ``sum((a - za) * (b - zb)) * sa * sb``.

Where both factors are bytes (`dequantized`), one unsigned and one signed, the sum is ``sum(a b) - za sum(b) - zb sum(a) + K za zb``, exact
in i32; sums over a parameter are made once. A kernel's epilogue then scales, and does what follows: bias, activation, quantization
(Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference", section 2.2). Where
only a parameter is, it is multiplied as codes and the sum is scaled: its bytes are what is read from memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from effc.compiler.ir.expr import product, var
from effc.compiler.ir.formats import INTEGERS, Format
from effc.compiler.pipeline.body_builder import BodyBuilder
from effc.compiler.pipeline.dequantized import Codes, Decoder, Term, origin, pointwise
from effc.compiler.pipeline.graph import CONTRACTIONS, Body, Graph, Op, Tensor
from effc.compiler.pipeline.views import Index, chain

#: Greatest sum that i32 holds.
_LIMIT = 2**31 - 1
_INTEGERS = ("i8", "i16", "i32", "i64")


def contract_integers(graph: Graph) -> int:
    """Rewrite the contractions of ``graph`` where both factors, or a parameter, are codes; how many."""
    return _Rewriting(graph).run()


@dataclass
class _Rewriting:
    graph: Graph
    decoder: Decoder = field(default_factory=Decoder)
    ops: dict[Op, None] = field(default_factory=dict)
    static: set[Tensor] = field(default_factory=set)
    zeros: dict[Tensor, str] = field(default_factory=dict)
    ranges: dict[Tensor, tuple[int, int]] = field(default_factory=dict)

    def run(self) -> int:
        updated = {self.graph.inputs[o.mutates].tensor for o in self.graph.outputs if o.mutates is not None}
        params = [i for i in self.graph.inputs if i.param and i.tensor not in updated]
        self.static = {i.tensor for i in params}
        self.ranges = {i.tensor: i.range for i in params if i.range is not None}
        self.zeros = {i.tensor: i.param for i in params if i.range == (0, 0)}
        count = 0
        for op in self.graph.ops:
            made = self._rewritten(op) if op.kind in CONTRACTIONS and op.results[0].dtype == "f32" else None
            if made is None:
                self._add(op)
                continue
            count += 1
            for tensor in op.operands:
                tensor.users.remove(op)
            for new in made:
                if new not in self.ops:
                    self._add(new)
                    for tensor in new.operands:
                        tensor.users.append(new)
        self.graph.ops[:] = self.ops
        return count

    def _add(self, op: Op) -> None:
        self.ops[op] = None
        if op.kind not in ("scatter", "attention") and all(t in self.static for t in op.operands):
            self.static.update(op.results)

    def _rewritten(self, op: Op) -> list[Op] | None:
        numbers = _factors(op)
        if numbers is None:
            return None
        found = [self.decoder.decode(op.operands[n]) for n in numbers]
        made = self._as_bytes(op, numbers, found) if None not in found else None
        for number, codes in zip(numbers, found, strict=True):
            if made is None and codes is not None and not self._is_data(codes):
                format_ = self._format(codes)
                made = _Weights(op, numbers, (number, codes, format_), self.static, self.zeros).run()
        return made

    def _as_bytes(self, op: Op, numbers: tuple[int, int], found: Sequence[Codes | None]) -> list[Op] | None:
        left, right = found
        if left is None or right is None:
            return None
        if left.unsigned == right.unsigned:  # a byte of a parameter is as good signed as unsigned: turn data
            if self._is_data(left):
                left = self.decoder.decode(op.operands[numbers[0]], flip=True)
            else:
                right = self.decoder.decode(op.operands[numbers[1]], flip=True)
        if left is None or right is None:
            return None
        return _Bytes(op, numbers, (left, right), self.static, self.zeros).run()

    def _format(self, codes: Codes) -> Format | None:
        """Of codes that take less than a byte: those of a parameter whose range is known, seen through views."""
        limits = self.ranges.get(chain(codes.tensor)[0])
        return next((f for f in INTEGERS if f.limits == limits), None)

    def _is_data(self, codes: Codes) -> bool:
        return chain(codes.tensor)[0] not in self.static


def _factors(op: Op) -> tuple[int, int] | None:
    """Numbers of the operands that a contraction multiplies, in the order of its product."""
    assert op.body is not None
    found = []
    for position in op.body.instrs[op.body.yields[0]].args:
        instr = op.body.instrs[position]
        while instr.op in ("arith.extf",):
            instr = op.body.instrs[instr.args[0]]
        if instr.op != "operand":
            return None
        found.append(int(instr.get("number")))
    return (found[0], found[1]) if len(found) == 2 else None


class _Form:
    """What both rewrites share: a contraction of other operands, and an epilogue over its results. ``static``: what depends on parameters
    alone; ``zeros``: parameters that are 0, with their names.
    """

    def __init__(
        self, op: Op, numbers: tuple[int, int], static: Collection[Tensor], zeros: Mapping[Tensor, str]
    ) -> None:
        self.op, self.numbers, self.static, self.zeros = op, numbers, static, zeros
        self.made: list[Op] = []
        self.place = {str(e): k for k, e in enumerate(op.result_maps[0])}
        self.body = BodyBuilder()
        self.operands: list[Tensor] = []
        self.maps: list[Index] = []

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
                name = self.zeros[origin(tensor)]
                b.check_zero(
                    part,
                    f"{name} was 0 when the model was compiled, and is not now: torch._dynamo.reset() and compile again",
                )
        maps = [tuple(e.substitute(own) for e in t.index) for t in parts]
        sizes = tuple(self.op.dims[int(n[1:])] for n in names)
        made = pointwise(tensors, maps, sizes, b.body(value), "f32", self.op.location)
        self.made.append(made)
        return Term(0.0, made.results[0], tuple(var(n) for n in names))

    def finish(self, value: int) -> list[Op]:
        """The epilogue takes the contraction's place."""
        result = self.op.results[0]
        made = pointwise(self.operands, self.maps, result.sizes, self.body.body(value), "f32", self.op.location)
        made.results = [result]
        result.producer = made
        return [*self.made, made]


class _Bytes(_Form):
    """Both factors are codes."""

    def __init__(
        self,
        op: Op,
        numbers: tuple[int, int],
        codes: tuple[Codes, Codes],
        static: Collection[Tensor],
        zeros: Mapping[Tensor, str],
    ) -> None:
        super().__init__(op, numbers, static, zeros)
        self.codes = codes

    def run(self) -> list[Op] | None:
        """The operations that replace the contraction; None where they cannot."""
        sides = list(zip(self.codes, self.numbers, strict=True))
        scales = [t for c, n in sides for t in self.terms(c.scales, n)]
        zeros = [self.terms(c.zeros, n) for c, n in sides]
        checked = [t for z in zeros for t in z if self.known_zero(t)] if self.fixed(scales) else []
        zeros = [[t for t in z if t not in checked] for z in zeros]
        points = product(self.op.dims[i] for i in self.op.reduction_dims).constant
        whole = all(t.tensor.dtype in _INTEGERS if t.tensor else t.value == int(t.value) for z in zeros for t in z)
        if not whole or not self.separable([*zeros[0], *zeros[1], *scales, *checked]):
            return None
        if points is None or points * (255 * 255 if all(map(_nonzero, zeros)) else 255 * 128) > _LIMIT:
            return None
        self.made += [m for c in self.codes for m in c.made]
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
            if _nonzero(zeros[one]):
                value = self._without(value, zeros[one], other)
        if all(map(_nonzero, zeros)):
            both = self.body.op("arith.muli", self._zero(zeros[0]), self._zero(zeros[1]))
            value = self.body.op(
                "arith.addi", value, self.body.op("arith.muli", both, self.body.constant(points, "i32"))
            )
        return self.finish(self.scaled(value, scales, checked))

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


class _Weights(_Form):
    """A parameter is codes: ``weight`` is its number among the operands, they, and their format where it is less than a byte."""

    def __init__(
        self,
        op: Op,
        numbers: tuple[int, int],
        weight: tuple[int, Codes, Format | None],
        static: Collection[Tensor],
        zeros: Mapping[Tensor, str],
    ) -> None:
        super().__init__(op, numbers, static, zeros)
        self.number, self.codes, self.format = weight

    def run(self) -> list[Op] | None:
        """The operations that replace the contraction; None where they cannot."""
        op = self.op
        scales, zeros = (self.terms(found, self.number) for found in (self.codes.scales, self.codes.zeros))
        checked = [t for t in zeros if self.known_zero(t)]
        zeros = [t for t in zeros if t not in checked and (t.tensor is not None or t.value)]
        if not self._has_kernel():
            return None
        self.made += self.codes.made
        if self.separable([*scales, *checked]) and not zeros and (self.fixed(scales) or not checked):
            total = self._sum([])
            return self.finish(self.scaled(self.read(total, op.result_maps[0]), scales, checked))
        inside = [t for t in scales if not self.separable([t])]
        outside = [t for t in scales if t not in inside]
        if len(inside) > 1 or len(zeros) > 1 or any(t.tensor is None for t in zeros):
            return None
        if not inside:  # a zero point alone: with a scale of its grain, or of 1
            inside, outside = outside[:1], outside[1:]
        if len(inside) != 1 or any(t.tensor is None or t.tensor not in self.static for t in [*inside, *zeros]):
            return None
        if any(t.index != inside[0].index for t in checked):
            return None
        scale = self._checked(inside[0], checked) if checked else inside[0]
        total = self._sum([*zeros, scale])
        return self.finish(self.scaled(self.read(total, op.result_maps[0]), outside))

    def _has_kernel(self) -> bool:
        """Whether `codegen` packs such a factor: of known sizes, of more than one column and more than one element of the sum."""
        op = self.op
        names = {n for e in op.maps[self.number] for n in e.variables()}
        columns = [op.dims[i].constant for i in op.parallel_dims if f"d{i}" in names]
        points = [op.dims[i].constant for i in op.reduction_dims]
        known = [n for n in (*columns, *points) if n is not None]
        return (
            len(known) == len(columns) + len(points)
            and max(columns, default=1) != 1
            and prod(known[len(columns) :]) > 1
        )

    def _sum(self, grains: Sequence[Term]) -> Tensor:
        """The contraction with the codes; ``grains``: a zero point and a scale, or a scale, that vary along the sum."""
        op = self.op
        factors = list(op.operands[:2])
        factors[self.number] = self.codes.tensor
        b = BodyBuilder()
        values = []
        for k in self.numbers:
            value = b.operand(k, factors[k].dtype)
            if k != self.number:
                values.append(b.cast(value, "f32"))
                continue
            if self.format is not None:
                decode = self.format.instr(value)
                value = b.instr(decode.op, decode.args, decode.dtype, decode.attributes)
            value = b.cast(value, "f32", unsigned=self.codes.unsigned)
            for number, term in enumerate(grains):
                assert term.tensor is not None, "run has seen to it"
                grain = b.cast(b.operand(2 + number, term.tensor.dtype), "f32")
                value = b.op("arith.mulf" if number == len(grains) - 1 else "arith.subf", value, grain)
            values.append(value)
        more = [(t.tensor, t.index) for t in grains if t.tensor is not None]
        return self.contraction(factors, b.body(b.op("arith.mulf", *values)), "f32", more)

    def _checked(self, scale: Term, zeros: Sequence[Term]) -> Term:
        """``scale``, with a check that ``zeros`` of the same index are 0."""
        assert scale.tensor is not None, "run has seen to it"
        b, tensors = BodyBuilder(), [scale.tensor, *(t.tensor for t in zeros if t.tensor is not None)]
        value = b.cast(b.operand(0, scale.tensor.dtype), "f32")
        for number, tensor in enumerate(tensors[1:], 1):
            b.check_zero(b.operand(number, tensor.dtype), self.message(tensor))
        dims = tuple(var(f"d{k}") for k in range(len(scale.tensor.sizes)))
        made = pointwise(tensors, [dims] * len(tensors), scale.tensor.sizes, b.body(value), "f32", self.op.location)
        self.made.append(made)
        return Term(0.0, made.results[0], scale.index)


def _nonzero(terms: Sequence[Term]) -> bool:
    return any(t.tensor is not None for t in terms) or sum(t.value for t in terms) != 0
