"""Gathers from a table that is computed from parameters read the parameters: ``(codes * scales)[i]`` is ``codes[i] * scales[i]``.

An embedding of a quantized table would else prepare all of it in floats, of which a call reads a few rows. The same operations run on
the same numbers, so no bit differs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from effc.compiler.ir.expr import Expr, product, recombine, var
from effc.compiler.ir.spec import ITEM_SIZE
from effc.compiler.pipeline.body_builder import BodyBuilder
from effc.compiler.pipeline.graph import Body, BodyInstr, Graph, Op, Tensor, is_static
from effc.compiler.pipeline.views import Index, backward, chain

#: Instructions for an element: a dequantization by a zero point and two scales, with conversions between.
_MOST = 16
_CHEAP = frozenset(
    f"arith.{op}"
    for op in (
        *("extf", "truncf", "extsi", "extui", "trunci", "sitofp", "uitofp"),
        *("addf", "subf", "mulf", "divf", "addi", "subi", "muli"),
    )
)


def gather_codes(graph: Graph) -> None:
    """Let each gather of ``graph`` compute what it reads of such a table, where that is from fewer bytes."""
    static = {graph.inputs[i].tensor for i in graph.constants()}
    for op in graph.ops:
        if is_static(op, static):
            static.update(op.results)
        elif op.kind == "generic" and "captured" in op.attributes:
            _Gather(op, static).run()


@dataclass
class _Gather:
    """A generic whose body reads captured tensors; its new body, and the tensors that it then captures."""

    op: Op
    static: Collection[Tensor]
    builder: BodyBuilder = field(default_factory=BodyBuilder)
    captured: list[Tensor] = field(default_factory=list)

    def run(self) -> None:
        op = self.op
        plain, body = op.attributes["captured"], op.body
        assert body is not None
        tables = op.operands[plain:]
        cheap = [self._is_cheap(t) for t in tables]
        if not any(cheap):
            return
        at: dict[int, int] = {}
        for position in sorted(body.needed()):
            instr = body.instrs[position]
            args = tuple(at[a] for a in instr.args)
            if instr.op != "extract":
                at[position] = self.builder.copy(instr, args)
                continue
            number = instr.get("number")
            index = tuple(e if e is not None else var(f"x{a}") for e, a in zip(instr.get("indices"), args, strict=True))
            found = self._value(tables[number], index) if cheap[number] else None
            found = self._extract(tables[number], index) if found is None else found
            assert found is not None, "each of its positions is known, or a value"
            at[position] = found
        op.body = Body(tuple(self.builder.instrs), tuple(at[y] for y in body.yields))
        for table in tables:
            table.users.remove(op)
        for tensor in self.captured:
            tensor.users.append(op)
        op.operands[plain:] = self.captured

    def _is_cheap(self, table: Tensor) -> bool:
        """Whether a table is a few operations on parameters of fewer bytes."""
        root = chain(table)[0]
        parts = list(self._parts(root))
        steps = [p for p in parts if isinstance(p, BodyInstr)]
        sizes = [_bytes(p) for p in parts if isinstance(p, Tensor)]
        whole = _bytes(root)
        if not steps or len(steps) > _MOST or any(s.op not in _CHEAP for s in steps) or whole is None or None in sizes:
            return False
        return sum(size or 0 for size in sizes) < whole

    def _parts(self, tensor: Tensor) -> Iterator[Tensor | BodyInstr]:
        """The instructions that compute an element of a tensor, and the tensors of which they do; only the tensor itself where it is no
        pointwise function of parameters.
        """
        op = tensor.producer
        if op is None or tensor not in self.static or op.kind not in ("generic", "fill") or not _is_pointwise(op):
            yield tensor
            return
        assert op.body is not None
        for instr in (op.body.instrs[p] for p in sorted(op.body.needed())):
            if instr.op == "operand":
                yield from self._parts(chain(op.operands[instr.get("number")])[0])
            elif instr.op != "constant":
                yield instr

    # -- the new body -----------------------------------------------------------------------------------------------
    def _value(self, tensor: Tensor, index: Index) -> int | None:
        """``tensor[index]``, computed as its producers do, where the positions that the data give stay positions of their own; in an index,
        ``x<p>`` is value p of the body.
        """
        root, views = chain(tensor)
        ranges = {f"d{i}": size for i, size in enumerate(self.op.dims)}
        ranges |= {str(e): size for e, size in zip(index, tensor.sizes, strict=True) if str(e)[0] == "x"}
        for view in reversed(views):
            index = tuple(recombine(e) for e in backward(view, index, ranges))
        op = root.producer
        if op is None or root not in self.static or op.kind not in ("generic", "fill") or not _is_pointwise(op):
            return self._extract(root, index)
        assert op.body is not None
        place = {str(e): position for e, position in zip(op.result_maps[0], index, strict=True)}
        at: dict[int, int] = {}
        for position in sorted(op.body.needed()):
            instr = op.body.instrs[position]
            if instr.op != "operand":
                args = tuple(at[a] for a in instr.args)
                at[position] = self.builder.copy(instr, args)
                continue
            number = instr.get("number")
            found = self._value(op.operands[number], tuple(e.substitute(place) for e in op.maps[number]))
            if found is None:
                return None
            at[position] = found
        return at[op.body.yields[0]]

    def _extract(self, tensor: Tensor, index: Index) -> int | None:
        args, known = list[int](), list[Expr | None]()
        for e in index:
            free = [n for n in e.variables() if n[0] == "x"]
            if free and e != var(free[0]):
                return None
            known.append(None if free else e)
            args.append(int(free[0][1:]) if free else self.builder.op("index", dtype="i64", attributes=(("expr", e),)))
        if tensor not in self.captured:
            self.captured.append(tensor)
        attributes = (("number", self.captured.index(tensor)), ("indices", tuple(known)))
        return self.builder.op("extract", *args, dtype=tensor.dtype, attributes=attributes)


def _is_pointwise(op: Op) -> bool:
    """Whether an element of the one result is a function of elements at positions that follow from its own."""
    dims = {f"d{i}" for i, size in enumerate(op.dims) if size.constant != 1}
    return (
        op.body is not None
        and len(op.results) == 1
        and not op.reduction_dims
        and op.attributes.get("captured", len(op.operands)) == len(op.operands)
        and dims <= {str(e) for e in op.result_maps[0]}
    )


def _bytes(tensor: Tensor) -> int | None:
    count = product(tensor.sizes).constant
    return None if count is None else count * ITEM_SIZE[tensor.dtype]
