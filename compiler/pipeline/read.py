"""Reading the graph IR: an MLIR module with ``@main`` → ``Graph``.

Scalars that a generic captures from outside (constants, symbols, arithmetic on them) become instructions of its body, so a
``Body`` is closed. ``linalg.fill`` is a generic without operands; a reduction's or contraction's init must be the fill of its identity.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch_mlir import ir

from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr, as_expr, const, product
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.pipeline import read_views as views
from effc.compiler.pipeline.attention import describe
from effc.compiler.pipeline.bodies import BodyReader, identity_of, split_reduction
from effc.compiler.pipeline.graph import CONTRACTIONS, Body, BodyInstr, Graph, GraphInput, GraphOutput, Op, Tensor
from effc.compiler.pipeline.sizes import Sizes, affine_expr


def read_graph(module: ir.Module) -> Graph:
    """The graph of ``@main``; LoweringError names an op that is not part of the graph IR."""
    main = next((f for f in module.body.operations if "main" in str(f.operation.attributes.get("sym_name", ""))), None)
    if main is None:
        raise LoweringError("the module has no function @main")
    return Reader(main.operation).read()


class Reader:
    """Reads one function; the handlers of single ops add to ``ops``."""

    def __init__(self, function: ir.Operation) -> None:
        self.function = function
        self.sizes = Sizes()
        self.tensors: dict[ir.Value, Tensor] = {}
        self.ops: list[Op] = []
        self.bodies = BodyReader(self.sizes, self.tensor)

    def read(self) -> Graph:
        block = self.function.regions[0].blocks[0]
        symbols: list[str] = []
        inputs: list[GraphInput] = []
        arguments = (
            self.function.attributes["arg_attrs"]
            if "arg_attrs" in self.function.attributes
            else [{}] * len(block.arguments)
        )
        for value, attributes in zip(block.arguments, arguments, strict=True):
            if isinstance(value.type, ir.IndexType):
                symbols.append(attributes["effc.symbol"].value)
                self.sizes.define_index(value, as_expr(symbols[-1]))
            else:
                inputs.append(self._input(value, attributes))
        outputs: list[GraphOutput] = []
        for op in block.operations:
            if op.operation.name == "func.return":
                outputs = self._outputs(op.operation)
            else:
                self._read(op.operation)
        return Graph(tuple(symbols), inputs, self.ops, outputs)

    # -- borders ----------------------------------------------------------------------------------------------------
    def _input(self, value: ir.Value, attributes: Any) -> GraphInput:
        static = [int(d) for d in value.type.shape]
        sizes = _texts(attributes, "effc.sizes") or tuple(const(d) for d in static)
        tensor = self._define(value, sizes, None)
        param = attributes["effc.param"].value if "effc.param" in attributes else ""
        if "effc.share" in attributes:
            tensor.share = attributes["effc.share"].value
            if not 0 <= tensor.share <= 1:
                raise LoweringError(f"effc.share of the parameter {param}: {tensor.share} is not between 0 and 1")
        strides = _texts(attributes, "effc.strides") or row_major(sizes)
        limits = _plain(attributes["effc.range"]) if "effc.range" in attributes else None
        values = tuple(attributes["effc.values"]) if "effc.values" in attributes else ()
        return GraphInput(tensor, strides, param, limits, values, sparsity=self._sparsity(param, attributes))

    def _sparsity(self, param: str, attributes: Any) -> Sparsity | None:
        if "effc.sparsity" not in attributes:
            return None
        try:
            return Sparsity.of(str(attributes["effc.sparsity"]), attributes["effc.stored"].value)
        except (KeyError, ValueError) as error:
            raise LoweringError(f"effc.sparsity of the parameter {param}: {error}") from error

    def _outputs(self, ret: ir.Operation) -> list[GraphOutput]:
        attributes = (
            self.function.attributes["res_attrs"]
            if "res_attrs" in self.function.attributes
            else [{}] * len(ret.operands)
        )
        found = []
        for value, attribute in zip(ret.operands, attributes, strict=True):
            tensor = self.tensor(value)
            mutates = attribute["effc.mutates"].value if "effc.mutates" in attribute else None
            found.append(GraphOutput(tensor, _texts(attribute, "effc.strides") or row_major(tensor.sizes), mutates))
        return found

    # -- operations -------------------------------------------------------------------------------------------------
    def _read(self, op: ir.Operation) -> None:
        handler = _HANDLERS.get(op.name)
        if handler is not None:
            handler(self, op)
        elif op.name.startswith("effc."):
            self._effc(op)
        elif any(isinstance(r.type, ir.RankedTensorType) for r in op.results):
            raise LoweringError(f"{op.name} is not part of the graph IR, at {location(op)}")

    def _empty(self, op: ir.Operation) -> None:
        sizes = self.sizes.mixed(op.results[0].type.shape, op.operands)
        self._define(op.results[0], sizes, None)

    def _constant(self, op: ir.Operation) -> None:
        if isinstance(op.results[0].type, ir.RankedTensorType):
            attribute = ir.DenseElementsAttr(op.attributes["value"])
            if not attribute.is_splat:
                raise LoweringError(f"a constant tensor that is not a splat, at {location(op)}")
            sizes = tuple(const(int(d)) for d in op.results[0].type.shape)
            self._fill_op(op, sizes, self.bodies.constant(attribute.get_splat_value()))

    def _fill(self, op: ir.Operation) -> None:
        self._fill_op(op, self.sizes.shape(op.operands[1]), self.bodies.scalar(op.operands[0]))

    def _fill_op(self, op: ir.Operation, sizes: tuple[Expr, ...], body: Body) -> None:
        dims = tuple(as_expr(f"d{i}") for i in range(len(sizes)))
        node = self.add(op, "fill", [], [sizes])
        node.dims, node.iterators, node.body = sizes, ("parallel",) * len(sizes), body
        node.result_maps = (dims,)

    def _generic(self, op: ir.Operation) -> None:
        inputs, inits = _split_operands(op)
        maps = [
            tuple(affine_expr(str(r)) for r in ir.AffineMapAttr(m).value.results)
            for m in op.attributes["indexing_maps"]
        ]
        iterators = tuple("reduction" if "reduction" in str(i) else "parallel" for i in op.attributes["iterator_types"])
        body, captured, reads_init = self.bodies.generic(op, len(inputs))
        if _is_copy(op, body, maps):
            self.remap(op, self.sizes.shape(inits[0]), maps[0])
            return
        reduces = "reduction" in iterators
        operands = [self.tensor(v) for v in inputs]
        input_maps = maps[: len(inputs)]
        if not reduces and reads_init:  # an init that is read is one more operand
            operands += [self.tensor(v) for v in inits]
            input_maps = maps
            body = _accumulators_as_operands(body, len(inputs))
        named = ir.StringAttr(op.attributes["effc.op"]).value if "effc.op" in op.attributes else ""
        kind = named if named in CONTRACTIONS else "generic"
        node = self.add(op, kind, [*operands, *captured], [self.sizes.shape(v) for v in inits])
        node.dims = self._dims(len(iterators), inputs, inits, maps)
        node.iterators, node.maps, node.result_maps = iterators, tuple(input_maps), tuple(maps[len(inputs) :])
        node.attributes["captured"] = len(operands)
        if named == "round":
            node.attributes["rounds"] = 1
        if reduces:
            body, kinds = split_reduction(body, node.location)
            if kind in CONTRACTIONS and kinds != ("add",):
                raise LoweringError(f"a contraction that does not sum, at {node.location}")
            node.attributes["reduce"] = kinds
            for value, reduce_kind, result in zip(inits, kinds, node.results, strict=True):
                self._require_identity(value, reduce_kind, result.dtype, node.location)
        node.body = body

    def _contract(self, op: ir.Operation) -> None:
        inputs, inits = _split_operands(op)
        maps = [
            tuple(affine_expr(str(r)) for r in ir.AffineMapAttr(m).value.results)
            for m in op.attributes["indexing_maps"]
        ]
        node = self.add(op, "contract", [self.tensor(v) for v in inputs], [self.sizes.shape(inits[0])])
        count = max(int(name[1:]) for m in maps for e in m for name in e.variables()) + 1
        output = {name for e in maps[2] for name in e.variables()}
        node.iterators = tuple("parallel" if f"d{i}" in output else "reduction" for i in range(count))
        node.dims = self._dims(count, inputs, inits, maps)
        node.maps, node.result_maps = tuple(maps[:2]), (maps[2],)
        self._require_identity(inits[0], "add", node.results[0].dtype, node.location)
        node.body = self.bodies.product([t.dtype for t in node.operands], node.results[0].dtype)
        node.attributes["reduce"] = ("add",)
        node.attributes["captured"] = 2

    def _require_identity(self, init: ir.Value, kind: str, dtype: str, where: str) -> None:
        producer = self.tensor(init).producer
        constant = (
            producer.body.instrs[-1].get("value") if producer and producer.kind == "fill" and producer.body else None
        )
        if constant not in identity_of(kind, dtype):
            raise LoweringError(
                f"a reduction ({kind}) that does not start from its identity but from {constant}, at {where}"
            )

    def _dims(
        self, count: int, inputs: list[ir.Value], inits: list[ir.Value], maps: list[tuple[Expr, ...]]
    ) -> tuple[Expr, ...]:
        """Sizes of the iteration space: of each dimension, the size of an operand's dimension that it alone indexes."""
        found: dict[str, Expr] = {}
        for value, results in reversed(list(zip([*inputs, *inits], maps, strict=True))):
            for size, e in zip(self.sizes.shape(value), results, strict=True):
                names = e.variables()
                if len(names) == 1 and e == as_expr(next(iter(names))):
                    found[str(e)] = size
        missing = [f"d{i}" for i in range(count) if f"d{i}" not in found]
        if missing:
            raise LoweringError(f"no operand fixes the size of the loop dimensions {', '.join(missing)}")
        return tuple(found[f"d{i}"] for i in range(count))

    def remap(self, op: ir.Operation, sizes: tuple[Expr, ...], amap: tuple[Expr, ...]) -> None:
        """A view that reads its source at ``amap`` of its own index."""
        self.add(op, "remap", [self.tensor(op.operands[0])], [sizes]).attributes["map"] = amap

    def _effc(self, op: ir.Operation) -> None:
        """An op of the effc dialect (see ``compiler/ir/dialect.py``)."""
        kind = op.name.removeprefix("effc.")
        operands = [self.tensor(v) for v in op.operands]
        attributes = {name: _plain(op.attributes[name]) for name in op.attributes}
        shape = operands[0].sizes
        shapes = {
            "argreduce": lambda: [tuple(s for i, s in enumerate(shape) if i != attributes["dim"])],
            "scan": lambda: [shape] * len(op.results),
            "scatter": lambda: [operands[0].sizes],
            "attention": lambda: [(*shape[:3], operands[2].sizes[3]), shape[:3]][: len(op.results)],
        }
        if kind not in shapes:
            raise LoweringError(f"{op.name} is not an op of the effc dialect, at {location(op)}")
        node = self.add(op, kind, operands, shapes[kind]())
        node.attributes.update(attributes)
        if kind == "scatter":
            self._scatter(node)
        if kind == "attention":
            describe(node)
        if kind in ("argreduce", "scan"):
            dims = tuple(as_expr(f"d{i}") for i in range(len(shape)))
            node.dims, node.maps = shape, (dims,)
            node.iterators = tuple("reduction" if i == attributes["dim"] else "parallel" for i in range(len(shape)))
            kept = dims if kind == "scan" else tuple(d for i, d in enumerate(dims) if i != attributes["dim"])
            node.result_maps = (kept,) * len(node.results)
            node.body = Body((BodyInstr("operand", (), operands[0].dtype, (("number", 0),)),), (0,))

    def _scatter(self, node: Op) -> None:
        """Bring a scatter's maps into one form: of updates, of each index tensor, of the destination (``s<j>``: index value j)."""
        base, updates, *indices = node.operands
        own = tuple(as_expr(f"d{i}") for i in range(len(updates.sizes)))
        target = tuple(as_expr(f"d{c}" if c >= 0 else f"s{-1 - c}") for c in node.attributes["coordinates"])
        node.operands = [updates, *indices, base]
        node.maps = (own, *node.attributes["index_maps"], target)
        node.dims, node.iterators, node.result_maps = updates.sizes, ("parallel",) * len(own), (target,)
        direct = {c for c in node.attributes["coordinates"] if c >= 0}
        node.attributes["independent"] = next((i for i in range(len(own)) if i not in direct), len(own))

    # -- helpers ----------------------------------------------------------------------------------------------------
    def add(self, op: ir.Operation, kind: str, operands: list[Tensor], shapes: list[tuple[Expr, ...]]) -> Op:
        node = Op(kind, operands, [], location(op))
        for tensor in operands:
            tensor.users.append(node)
        node.results = [self._define(value, sizes, node) for value, sizes in zip(op.results, shapes, strict=True)]
        self.ops.append(node)
        return node

    def _define(self, value: ir.Value, sizes: tuple[Expr, ...], producer: Op | None) -> Tensor:
        self.sizes.define_shape(value, sizes)
        tensor = Tensor(f"t{len(self.tensors)}", str(value.type.element_type), sizes, producer)
        self.tensors[value] = tensor
        return tensor

    def tensor(self, value: ir.Value) -> Tensor:
        return self.tensors[value]


_HANDLERS: dict[str, Callable[[Reader, ir.Operation], None]] = {
    "tensor.empty": Reader._empty,
    "arith.constant": Reader._constant,
    "linalg.fill": Reader._fill,
    "linalg.generic": Reader._generic,
    "linalg.contract": Reader._contract,
    "linalg.transpose": views.read_transpose,
    "linalg.broadcast": views.read_broadcast,
    "tensor.extract_slice": views.read_slice,
    "tensor.insert_slice": views.read_insert,
    "tensor.expand_shape": views.read_expand,
    "tensor.collapse_shape": views.read_collapse,
    "tensor.cast": views.read_cast,
    "tensor.pad": views.read_pad,
    "tensor.concat": views.read_concat,
}


def row_major(sizes: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Strides in elements of a contiguous tensor."""
    return tuple(product(sizes[i + 1 :]) for i in range(len(sizes)))


def location(op: ir.Operation) -> str:
    """``model.py:12`` of an op's location, the name alone where the line is 0, ``""`` where there is none."""
    found = re.search(r'"([^"]*)":(\d+)', str(op.location))
    if found is None:
        return ""
    return f"{found[1]}:{found[2]}" if int(found[2]) else found[1]


def _texts(attributes: Any, name: str) -> tuple[Expr, ...] | None:
    if name not in attributes:
        return None
    return tuple(as_expr(ir.StringAttr(t).value) for t in ir.ArrayAttr(attributes[name]))


def _split_operands(op: ir.Operation) -> tuple[list[ir.Value], list[ir.Value]]:
    count = int(ir.DenseI32ArrayAttr(op.attributes["operandSegmentSizes"])[0])
    values = list(op.operands)
    return values[:count], values[count:]


def _is_copy(op: ir.Operation, body: Body, maps: list[tuple[Expr, ...]]) -> bool:
    """Whether a generic only moves its one operand: a copy, transpose or broadcast written out."""
    if len(maps) != 2 or maps[1] != tuple(as_expr(f"d{i}") for i in range(len(maps[1]))):
        return False
    instr = body.instrs[body.yields[0]]
    plain = all(e == const(0) or str(e) in {str(d) for d in maps[1]} for e in maps[0])
    return plain and instr.op == "operand" and "effc.op" not in op.attributes


def _accumulators_as_operands(body: Body, inputs: int) -> Body:
    def one(instr: BodyInstr) -> BodyInstr:
        if instr.op != "accumulator":
            return instr
        return BodyInstr("operand", (), instr.dtype, (("number", inputs + instr.get("number")),))

    return Body(tuple(one(i) for i in body.instrs), body.yields)


def _plain(attribute: ir.Attribute) -> Any:
    """A Python value of an attribute: int, float, bool, string, or a tuple of them."""
    if isinstance(attribute, ir.BoolAttr | ir.IntegerAttr | ir.FloatAttr | ir.StringAttr):
        return attribute.value
    if isinstance(attribute, ir.ArrayAttr):
        return tuple(_plain(a) for a in attribute)
    if isinstance(attribute, ir.AffineMapAttr):
        return tuple(affine_expr(str(r)) for r in attribute.value.results)
    if isinstance(attribute, ir.DenseI64ArrayAttr):
        return tuple(int(v) for v in attribute)
    return str(attribute)
