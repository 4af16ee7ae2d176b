"""Contractions of dequantized factors run in integers: ``sum((a - za) * (b - zb)) * sa * sb``.

Where both factors are bytes (`dequantized`), one unsigned and one signed, the sum is ``sum(a b) - za sum(b) - zb sum(a) + K za zb``,
exact in i32; sums over a parameter are made once. Where the model itself sums two signed factors in i32, one is turned likewise. A
kernel's epilogue then scales, and does what follows: bias, activation, quantization (Jacob et al. 2018, "Quantization and training of
neural networks for efficient integer-arithmetic-only inference", section 2.2). Where only a parameter is, it is multiplied as codes and
the sum is scaled: its bytes are what is read from memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from effc.compiler.codegen.cpu.contraction.code_rows import FEW_ROWS
from effc.compiler.ir.expr import product
from effc.compiler.ir.formats import INTEGERS, Format
from effc.compiler.pipeline.graph import CONTRACTIONS, Graph, GraphInput, Op, Tensor, is_static, replace_ops
from effc.compiler.pipeline.integers.dequantized import Codes, Decoder, Term
from effc.compiler.pipeline.integers.products import ByteProduct
from effc.compiler.pipeline.integers.regrouped import grains_of
from effc.compiler.pipeline.integers.weights import CodedWeight
from effc.compiler.pipeline.views import chain


def contract_integers(graph: Graph) -> tuple[str, ...]:
    """Rewrite the contractions of ``graph`` where both factors, or a parameter, are codes; which of such stay in floats, and why."""
    params = [graph.inputs[i] for i in sorted(graph.constants())]
    rewriting = _Rewriting(
        {i.tensor for i in params},
        {i.tensor: i.param for i in params if i.range == (0, 0)},
        {i.tensor: i.range for i in params if i.range is not None},
        {i.tensor: i for i in params if i.values},
    )
    replace_ops(graph, rewriting.rewritten, rewriting.see)
    return tuple(rewriting.notes)


@dataclass
class _Rewriting:
    """``static``: what depends on parameters alone; ``zeros``: names of parameters that are 0; ``ranges``: limits of their elements;
    ``books``: parameters whose elements are known.
    """

    static: set[Tensor]
    zeros: dict[Tensor, str]
    ranges: dict[Tensor, tuple[int, int]]
    books: dict[Tensor, GraphInput]
    decoder: Decoder = field(init=False)
    notes: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.decoder = Decoder(self.books)

    def see(self, op: Op) -> None:
        """Tell static results from others."""
        if is_static(op, self.static):
            self.static.update(op.results)

    def rewritten(self, op: Op) -> list[Op] | None:
        """What replaces ``op``, if anything does."""
        if op.kind not in CONTRACTIONS:
            return None
        if op.results[0].dtype == "i32":
            return self._signed(op)
        numbers = _factors(op) if op.results[0].dtype == "f32" else None
        if numbers is None:
            return None
        found = [self.decoder.decode(op.operands[n]) for n in numbers]
        left, right = found
        if left is not None and right is not None:
            made = self._with_few_rows(op, numbers, left, right) or self._as_bytes(op, numbers, left, right)
            if isinstance(made, list):
                return made
            self._note(op, "two dequantized factors is summed in floats", made)
        for number, codes in zip(numbers, found, strict=True):
            if codes is not None and not self._is_data(codes):
                book = None if codes.book is None else self.books[codes.book]
                weight = (number, codes, self._format(codes, book))
                made = CodedWeight(op, numbers, weight, self.static, self.zeros, book).run()
                if isinstance(made, list):
                    return made
                self._note(op, "a dequantized weight reads it as floats", made)
        return None

    def _signed(self, op: Op) -> list[Op] | None:
        """A product of bytes that are both signed: one is turned."""
        numbers = _factors(op, "arith.extsi")
        if numbers is None or any(op.operands[n].dtype != "i8" for n in numbers):
            return None
        left, right = (Codes(op.operands[n]) for n in numbers)
        which = 0 if self._is_data(left) else 1
        turned = self.decoder.decode(op.operands[numbers[which]], flip=True)
        if turned is None:
            return None
        turned = replace(turned, unsigned=True, zeros=(Term(128.0),))
        pair = (turned, right) if which == 0 else (left, turned)
        made = ByteProduct(op, numbers, pair, self.static, self.zeros).run()
        return made if isinstance(made, list) else None

    def _note(self, op: Op, what: str, reason: str) -> None:
        kind = "convolution" if op.kind == "conv" else "product"
        self.notes[f"{op.location or 'an unknown place'}: a {kind} of {what}: {reason}"] = None

    def _as_bytes(self, op: Op, numbers: tuple[int, int], left: Codes, right: Codes) -> list[Op] | str:
        if left.book is not None or right.book is not None:
            return "the codes of one are positions in a codebook"
        if left.unsigned == right.unsigned:  # a byte of a parameter is as good signed as unsigned: turn data
            turned = 0 if self._is_data(left) else 1
            flipped = self.decoder.decode(op.operands[numbers[turned]], flip=True)
            if flipped is None:
                return "both are signed or both unsigned, and neither's bytes can be read the other way"
            left, right = (flipped, right) if turned == 0 else (left, flipped)
        return ByteProduct(op, numbers, (left, right), self.static, self.zeros).run()

    def _with_few_rows(self, op: Op, numbers: tuple[int, int], left: Codes, right: Codes) -> list[Op] | None:
        """A product of few rows with codes of less than a byte, which stay such: they are what is read from memory."""
        for number, codes, rows in ((numbers[1], right, left), (numbers[0], left, right)):
            if self._is_data(codes) or codes.book is not None or rows.book is not None or rows.unsigned or rows.zeros:
                continue
            own = {n for e in op.maps[number] for n in e.variables()}
            count = product(op.dims[d] for d in op.parallel_dims if f"d{d}" not in own).constant
            if count is None or count > FEW_ROWS:  # bytes that are made once are better
                continue
            codes = grains_of(self.decoder, codes, self._limits) or codes
            format_ = self._format(codes, None)
            if format_ is not None:
                found = CodedWeight(op, numbers, (number, codes, format_), self.static, self.zeros, rows=rows).run()
                return found if isinstance(found, list) else None
        return None

    def _format(self, codes: Codes, book: GraphInput | None) -> Format | None:
        """Of codes that take less than a byte: those of a parameter whose range is known, seen through views."""
        limits = self._limits(codes.tensor)
        if limits is None:
            return None
        known = INTEGERS if book is None else (Format(len(book.values).bit_length() - 1, codebook=book.values),)
        return next((f for f in known if f.limits[0] <= limits[0] and limits[1] <= f.limits[1]), None)

    def _limits(self, tensor: Tensor) -> tuple[int, int] | None:
        """The least and the greatest element of a parameter seen through views, where they are known."""
        return self.ranges.get(chain(tensor)[0])

    def _is_data(self, codes: Codes) -> bool:
        return chain(codes.tensor)[0] not in self.static


def _factors(op: Op, widening: str = "arith.extf") -> tuple[int, int] | None:
    """Numbers of the operands that a contraction multiplies, in the order of its product, after ``widening`` at most."""
    assert op.body is not None
    found = []
    for position in op.body.instrs[op.body.yields[0]].args:
        instr = op.body.instrs[position]
        while instr.op == widening:
            instr = op.body.instrs[instr.args[0]]
        if instr.op != "operand":
            return None
        found.append(int(instr.get("number")))
    return (found[0], found[1]) if len(found) == 2 else None
