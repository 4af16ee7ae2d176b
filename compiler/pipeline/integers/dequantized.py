"""What a float tensor is as codes: ``(code - zero) * scale``, read from the operations that dequantize it, however they are written.

The way back from a float tensor to integers of 8 bits leads through views, pads with zeros, and pointwise operations that convert the
code, subtract from it what does not depend on it, and multiply it by such. Views and pads are made anew over the codes. Bytes may in turn
be codes of fewer bits times small integers (`Decoder.regrouped`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from effc.compiler.ir.expr import Expr, var
from effc.compiler.pipeline.evaluation import DTYPES, argument, evaluate, filled
from effc.compiler.pipeline.graph import Body, BodyInstr, Op, Tensor
from effc.compiler.pipeline.views import Index, backward, chain

#: Conversions that keep a code of 8 bits as it is.
_WIDENINGS = frozenset({"arith.extsi", "arith.extui", "arith.sitofp", "arith.uitofp"})
#: Conversions of a value that is a code times a scale: at most rounded.
_KEEPING = frozenset({"arith.extf", "arith.truncf", *_WIDENINGS})


@dataclass(frozen=True)
class Term:
    """A number, or where ``tensor`` is given its element at ``index``, over the index ``r0, r1, …`` of the decoded tensor."""

    value: float = 0.0
    tensor: Tensor | None = None
    index: Index = ()

    def at(self, index: Index) -> Term:
        """With ``index`` in place of ``r0, r1, …``."""
        values = {f"r{k}": e for k, e in enumerate(index)}
        return replace(self, index=tuple(e.substitute(values) for e in self.index))


@dataclass(frozen=True)
class Codes:
    """``tensor`` (i8) holds the codes at the index of the decoded tensor: it is (code - sum of ``zeros``) * product of ``scales``.
    ``book``: where codes are positions in a table of numbers, this table; such a number stands for the code then. ``made``: operations
    that compute ``tensor`` and the terms, in order; they belong to no graph yet.
    """

    tensor: Tensor
    unsigned: bool = False
    scales: tuple[Term, ...] = ()
    zeros: tuple[Term, ...] = ()
    book: Tensor | None = None
    made: tuple[Op, ...] = ()

    @property
    def zero(self) -> int | None:
        """The sum of the zeros where it is a known integer."""
        total = sum(z.value for z in self.zeros)
        return int(total) if all(z.tensor is None for z in self.zeros) and total == int(total) else None


class Decoder:
    """Decodes tensors of one graph; what two of them share is made once. ``books``: tables whose elements are known."""

    def __init__(self, books: Collection[Tensor] = ()) -> None:
        self.books = books
        self._known: dict[tuple[Tensor, bool], Codes | None] = {}

    def decode(self, tensor: Tensor, *, flip: bool = False) -> Codes | None:
        """``tensor`` as codes, or None where it is nothing of the kind. ``flip``: signed codes become unsigned, or the reverse, by
        128 more or less.
        """
        if (tensor, flip) not in self._known:
            self._known[tensor, flip] = self._decode(tensor, flip)
        return self._known[tensor, flip]

    def regrouped(self, tensor: Tensor) -> Codes | None:
        """Bytes as the ``(code - zero) * scale`` that they are in 8 bits, unless that wraps around; None where they are no such product."""
        op = tensor.producer
        if op is None or tensor.dtype != "i8":
            return None
        if op.is_view and op.kind != "border":
            inner = self.regrouped(op.operands[0])
            return None if inner is None else _through_view(op, inner)
        if op.kind != "generic" or len(op.results) != 1 or op.reduction_dims or op.body is None:
            return None
        for number, operand in enumerate(op.operands):
            if op.maps[number] == op.result_maps[0]:
                found = _Body(op, number, self.regrouped(operand) or Codes(operand), False).run()
                if found is not None and (found.scales or found.zeros):
                    return found
        return None

    def _decode(self, tensor: Tensor, flip: bool) -> Codes | None:
        op = tensor.producer
        if tensor.dtype == "i8":
            same = _less_zero(op)
            if same is not None:
                return self.decode(same, flip=flip)
            if flip and op is not None and op.kind == "concat":
                return self._through_concat(op, flip)
            return _flipped(tensor) if flip else Codes(tensor)
        if op is None or tensor.dtype not in ("i16", "i32", "i64", "f32", "f64", "bf16"):
            return None
        if op.is_view and op.kind != "border":
            inner = self.decode(op.operands[0], flip=flip)
            return None if inner is None else _through_view(op, inner)
        if op.kind == "pad":
            inner = self.decode(op.operands[0], flip=flip)
            return None if inner is None else _through_pad(op, inner)
        if op.kind == "concat":
            return self._through_concat(op, flip)
        if op.kind == "generic" and len(op.results) == 1 and not op.reduction_dims and op.body is not None:
            return self._through_body(op, flip)
        return None

    def _through_concat(self, op: Op, flip: bool) -> Codes | None:
        """Of operands that are all codes, by the same numbers."""
        parts = [self.decode(t, flip=flip) for t in op.operands]
        first = parts[0]
        if first is None or first.zero is None or any(s.tensor is not None for s in first.scales):
            return None
        made: dict[Op, None] = {}
        for part in parts:
            if part is None or part.book is not None:
                return None
            if (part.unsigned, part.zero, part.scales) != (first.unsigned, first.zero, first.scales):
                return None
            made.update(dict.fromkeys(part.made))
        result = Tensor("", "i8", op.results[0].sizes)
        sources = [p.tensor for p in parts if p is not None]
        joined = Op("concat", sources, [result], op.location, attributes=dict(op.attributes))
        result.producer = joined
        return replace(first, tensor=result, made=(*made, joined))

    def _through_body(self, op: Op, flip: bool) -> Codes | None:
        """The operand that is codes, and what the body makes of it."""
        plain = op.attributes.get("captured", len(op.operands))
        if len(op.operands) == plain + 1 and op.operands[plain] in self.books:
            return None if flip else self._looked_up(op)
        for number in range(plain):
            if op.maps[number] != op.result_maps[0]:
                continue
            inner = self.decode(op.operands[number], flip=flip)
            found = _Body(op, number, inner, flip).run() if inner is not None else None
            if found is not None:
                return found
        return None

    def _looked_up(self, op: Op) -> Codes | None:
        """Elements of a table at positions that are codes."""
        number, body, book = argument(op, captured=1), op.body, op.operands[-1]
        inner = None if number is None else self.decode(op.operands[number])
        if number is None or body is None or inner is None or inner.scales or inner.zeros or inner.book is not None:
            return None
        read = body.instrs[body.yields[0]]
        size = book.sizes[0].constant or 0
        positions = np.arange(size, dtype=DTYPES[op.operands[number].dtype])
        at = evaluate(op, {number: positions}, read.args[0]) if read.op == "extract" else None
        return replace(inner, book=book) if at is not None and np.array_equal(at, positions) else None


def _flipped(tensor: Tensor) -> Codes:
    """Bytes with their highest bit the other way."""
    dims = tuple(var(f"d{i}") for i in range(len(tensor.sizes)))
    body = Body(
        (
            BodyInstr("operand", (), "i8", (("number", 0),)),
            BodyInstr("constant", (), "i8", (("value", -128),)),
            BodyInstr("arith.xori", (0, 1), "i8"),
        ),
        (2,),
    )
    op = pointwise([tensor], [dims], tensor.sizes, body, "i8", tensor.producer.location if tensor.producer else "")
    return Codes(op.results[0], made=(op,))


def pointwise(
    operands: Sequence[Tensor], maps: Sequence[Index], sizes: tuple[Expr, ...], body: Body, dtype: str, location: str
) -> Op:
    """A generic over ``sizes`` whose result has that shape."""
    result = Tensor("", dtype, sizes)
    dims = tuple(var(f"d{i}") for i in range(len(sizes)))
    kinds, attributes = ("parallel",) * len(sizes), {"captured": len(operands)}
    op = Op("generic", list(operands), [result], location, sizes, kinds, tuple(maps), (dims,), body, attributes)
    result.producer = op
    return op


def _through_view(op: Op, inner: Codes) -> Codes:
    result = op.results[0]
    made = over(op, inner.tensor)
    ranges = {f"r{k}": size for k, size in enumerate(result.sizes)}
    index = backward(op, tuple(var(f"r{k}") for k in range(len(result.sizes))), ranges)
    return _moved(inner, made, index)


def _through_pad(op: Op, inner: Codes) -> Codes | None:
    if inner.zero is None or inner.book is not None or op.body is None:
        return None
    filler = op.body.instrs[op.body.yields[0]]
    if filler.op != "constant" or filler.get("value") != 0 or not -128 <= inner.zero <= 255:
        return None
    low, source, result = op.attributes["low"], op.operands[0].sizes, op.results[0].sizes
    index = tuple(var(f"r{k}") - start for k, start in enumerate(low))
    padded = {f"r{k}" for k, (s, r) in enumerate(zip(source, result, strict=True)) if s != r}
    terms = [e for t in (*inner.scales, *inner.zeros) for e in t.at(tuple(var(f"r{k}") for k in range(len(low)))).index]
    if any(not padded.isdisjoint(e.variables()) for e in terms):
        return None
    made = over(op, inner.tensor)
    byte = inner.zero - 256 if inner.zero > 127 else inner.zero
    made.body = Body((BodyInstr("constant", (), "i8", (("value", byte),)),), (0,))
    return _moved(inner, made, index)


def over(op: Op, source: Tensor) -> Op:
    """The view or pad ``op`` of another tensor."""
    result = Tensor("", source.dtype, op.results[0].sizes)
    made = Op(op.kind, [source], [result], op.location, attributes=dict(op.attributes))
    result.producer = made
    return made


def _moved(inner: Codes, made: Op, index: Index) -> Codes:
    scales, zeros = (tuple(t.at(index) for t in terms) for terms in (inner.scales, inner.zeros))
    return Codes(made.results[0], inner.unsigned, scales, zeros, inner.book, (*inner.made, made))


# -- pointwise operations -------------------------------------------------------------------------------------------
@dataclass
class _Body:
    """Reads a body whose operand ``number`` is ``inner``; ``flip``: bytes among the operands were flipped."""

    op: Op
    number: int
    inner: Codes
    flip: bool
    made: list[Op] = field(default_factory=list)

    def run(self) -> Codes | None:
        body = self.op.body
        assert body is not None
        needed = body.needed()
        states: dict[int, Codes] = {}
        for position, instr in enumerate(body.instrs):
            if position not in needed:
                continue
            if instr.op in ("check", "extract", "accumulator"):
                return None
            if instr.op == "operand" and instr.get("number") == self.number:
                states[position] = self.inner
            elif any(a in states for a in instr.args):
                state = self._apply(instr, states)
                if state is None:
                    return None
                states[position] = state
        found = states.get(body.yields[0])
        return None if found is None else replace(found, made=(*self.inner.made, *self.made))

    def _apply(self, instr: BodyInstr, states: dict[int, Codes]) -> Codes | None:
        if instr.op in _KEEPING:
            state = states[instr.args[0]]
            raw = self._is_raw(state)
            if not raw or instr.op not in _WIDENINGS:
                return state
            unsigned = instr.op in ("arith.extui", "arith.uitofp")
            if not self.flip:
                return replace(state, unsigned=unsigned)
            return replace(state, unsigned=not unsigned, zeros=(Term(-128.0 if unsigned else 128.0),))
        if len(instr.args) != 2 or all(a in states for a in instr.args):
            return None
        first = instr.args[0] in states
        state, other = states[instr.args[0 if first else 1]], instr.args[1 if first else 0]
        if instr.op in ("arith.subi", "arith.subf") and first and not state.scales:
            term = self._term(other)
            return None if term is None else replace(state, zeros=(*state.zeros, term))
        if instr.op == "arith.mulf" or (instr.op == "arith.muli" and instr.dtype == "i8"):
            term = self._term(other)
            return None if term is None else replace(state, scales=(*state.scales, term))
        return None

    def _is_raw(self, state: Codes) -> bool:
        """Whether a state is still the operand of 8 bits itself."""
        return self.op.operands[self.number].dtype == "i8" and not (state.scales or state.zeros)

    def _term(self, position: int) -> Term | None:
        """The value at ``position``, which does not depend on the code."""
        body = self.op.body
        assert body is not None
        instr = body.instrs[position]
        if instr.op == "operand" and (known := filled(self.op.operands[instr.get("number")])) is not None:
            return Term(known)
        if instr.op == "constant" and isinstance(instr.get("value"), (int, float)):
            return Term(float(instr.get("value")))
        if instr.op == "index" and instr.get("expr").constant is not None:
            return Term(float(instr.get("expr").constant))
        part = Body(body.instrs, (position,))
        needed = sorted(part.needed())
        numbers = sorted({body.instrs[p].get("number") for p in needed if body.instrs[p].op == "operand"})
        if any(body.instrs[p].op in ("index", "check", "extract", "accumulator") for p in needed):
            return None
        rows = {str(e): k for k, e in enumerate(self.op.result_maps[0])}
        found = {int(n[1:]) for i in numbers for e in self.op.maps[i] for n in e.variables()}
        used = sorted(d for d in found if self.op.dims[d].constant != 1)
        place: dict[str, Expr | int] = {f"d{d}": 0 for d in found} | {f"d{d}": var(f"d{k}") for k, d in enumerate(used)}
        if any(f"d{d}" not in rows for d in used):
            return None
        if instr.op == "operand":
            index = {f"d{d}": var(f"r{rows[f'd{d}']}") if d in used else 0 for d in found}
            return Term(0.0, self.op.operands[numbers[0]], tuple(e.substitute(index) for e in self.op.maps[numbers[0]]))
        at = {p: k for k, p in enumerate(needed)}
        instrs = [_reread(body.instrs[p], at, numbers) for p in needed]
        maps = [tuple(e.substitute(place) for e in self.op.maps[i]) for i in numbers]
        made = pointwise(
            [self.op.operands[i] for i in numbers], maps, tuple(self.op.dims[d] for d in used),
            Body(tuple(instrs), (at[position],)), instr.dtype, self.op.location,
        )  # fmt: skip
        self.made.append(made)
        return Term(0.0, made.results[0], tuple(var(f"r{rows[f'd{d}']}") for d in used))


def origin(tensor: Tensor) -> Tensor:
    """The tensor whose elements, converted, are all that this one holds."""
    root, _ = chain(tensor)
    op = root.producer
    if op is None or op.kind != "generic" or op.body is None or len(op.operands) != 1 or op.reduction_dims:
        return root
    plain = all(op.body.instrs[p].op in _KEEPING or op.body.instrs[p].op == "operand" for p in op.body.needed())
    return origin(op.operands[0]) if plain else root


def unconverted(tensor: Tensor) -> tuple[Tensor, list[Op]] | None:
    """The signed bytes (i8) that ``tensor`` is, element by element, as floats or wider integers, and the views that make them, in order;
    None where it is something else.
    """
    op = tensor.producer
    if tensor.dtype == "i8":
        return tensor, []
    if op is None:
        return None
    if op.is_view and op.kind != "border":
        inner = unconverted(op.operands[0])
        if inner is None:
            return None
        made = over(op, inner[0])
        return made.results[0], [*inner[1], made]
    if op.kind != "generic" or op.body is None or len(op.operands) != 1 or op.maps[0] != op.result_maps[0]:
        return None
    ops = {op.body.instrs[p].op for p in op.body.needed()}
    return unconverted(op.operands[0]) if ops <= {"operand", "arith.extsi", "arith.sitofp"} else None


def _less_zero(op: Op | None) -> Tensor | None:
    """The operand from which ``op`` takes zero away, in 8 bits: where a quantization has no zero point, torch subtracts one that is 0."""
    if (
        op is None
        or op.kind != "generic"
        or op.body is None
        or op.maps[:1] != op.result_maps
        or op.operands[0].dtype != "i8"
    ):
        return None
    instrs = op.body.instrs
    last = instrs[op.body.yields[0]]
    if last.op != "arith.subi" or instrs[last.args[0]].op != "operand" or instrs[last.args[0]].get("number") != 0:
        return None
    zero = instrs[last.args[1]]
    while zero.op in ("arith.trunci", "arith.extsi"):
        zero = instrs[zero.args[0]]
    known = zero.get("value") if zero.op == "constant" else None
    if zero.op == "operand" and zero.get("number"):
        known = filled(op.operands[zero.get("number")])
    return op.operands[0] if known == 0 else None


def _reread(instr: BodyInstr, at: dict[int, int], numbers: Sequence[int]) -> BodyInstr:
    attributes = instr.attributes
    if instr.op == "operand":
        attributes = (("number", numbers.index(instr.get("number"))),)
    return BodyInstr(instr.op, tuple(at[a] for a in instr.args), instr.dtype, attributes)
