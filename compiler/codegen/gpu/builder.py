"""A builder of ``tt`` kernels: values are MLIR values, tiles broadcast as numpy's arrays do, scalars spread over tiles.

dtypes are the specs' names (``f32``, ``i1``, …). Everything checks at once what Triton would refuse much later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch_mlir import ir
from torch_mlir.dialects import scf
from torch_mlir.passmanager import PassManager

from effc.compiler.codegen.gpu import dialect as tt
from effc.compiler.codegen.gpu.dialect import element_of, pointee_of, shape_of
from effc.compiler.ir.errors import LoweringError

_CMPI = ("eq", "ne", "slt", "sle", "sgt", "sge", "ult", "ule", "ugt", "uge")
_CMPF = (
    "false", "oeq", "ogt", "oge", "olt", "ole", "one", "ord", "ueq", "ugt", "uge", "ult", "ule", "une", "uno", "true",
)  # fmt: skip
_FLOATS = frozenset({"f64", "f32", "f16", "bf16"})

Shape = tuple[int, ...]


class Builder:
    """Ops go where MLIR's current insertion point is."""

    # -- types and constants ------------------------------------------------------------------------------------------
    def element(self, dtype: str) -> ir.Type:
        return ir.Type.parse(dtype)

    def type(self, dtype: str, shape: Shape = ()) -> ir.Type:
        return ir.RankedTensorType.get(shape, self.element(dtype)) if shape else self.element(dtype)

    def constant(self, value: float | str, dtype: str, shape: Shape = ()) -> ir.Value:
        """``value``, rounded to ``dtype`` (integers wrap); "nan", "inf" and "-inf" too."""
        element = self.element(dtype)
        if dtype in _FLOATS:
            attribute = ir.FloatAttr.get(element, float(value))
        else:
            bits = int(dtype[1:])
            wrapped = int(value) & ((1 << bits) - 1)
            signed = wrapped - (1 << bits) if bits > 1 and wrapped >> (bits - 1) else wrapped
            attribute = ir.IntegerAttr.get(element, signed)
        type_ = self.type(dtype, shape)
        if shape:
            attribute = ir.DenseElementsAttr.get_splat(type_, attribute)
        return self._create("arith.constant", [], [type_], value=attribute)

    # -- arithmetic ---------------------------------------------------------------------------------------------------
    def op(self, name: str, *values: ir.Value, dtype: str | None = None) -> ir.Value:
        """``name`` on values of one shape, broadcast; the result is of ``dtype``, or as the last value is."""
        values = self.unified(*values)
        element = self.element(dtype) if dtype else element_of(values[-1])
        return self._create(name, values, [_like(values[-1], element)])

    def compare(self, op: str, predicate: str, x: ir.Value, y: ir.Value) -> ir.Value:
        """``arith.cmpi`` or ``arith.cmpf``."""
        x, y = self.unified(x, y)
        number = (_CMPI if op == "arith.cmpi" else _CMPF).index(predicate)
        attribute = ir.IntegerAttr.get(self.element("i64"), number)
        return self._create(op, [x, y], [_like(x, self.element("i1"))], predicate=attribute)

    def select(self, condition: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
        condition, x, y = self.unified(condition, x, y)
        return self._create("arith.select", [condition, x, y], [x.type])

    def extern(self, symbol: str, *values: ir.Value) -> ir.Value:
        """A function of libdevice."""
        values = self.unified(*values)
        empty = ir.StringAttr.get("")
        found = tt.ExternElementwise(
            list(values), empty, empty, ir.StringAttr.get(symbol), ir.BoolAttr.get(True), values[0].type
        )
        return found.result

    def bitcast(self, value: ir.Value, dtype: str) -> ir.Value:
        return tt.Bitcast(value, _like(value, self.element(dtype))).result

    def precise(self, x: ir.Value, y: ir.Value | None = None) -> ir.Value:
        """Of f32: ``x / y``, or the square root of ``x``, rounded as IEEE 754 says."""
        if y is None:
            return tt.PreciseSqrt(x, x.type).result
        x, y = self.unified(x, y)
        return tt.PreciseDiv(x, y, x.type).result

    def both(self, x: ir.Value | None, y: ir.Value | None) -> ir.Value | None:
        """The conjunction of two masks, of which None is always true."""
        return y if x is None else x if y is None else self.op("arith.andi", x, y)

    # -- shapes -------------------------------------------------------------------------------------------------------
    def program_id(self) -> ir.Value:
        return tt.GetProgramId(self._i32(0), self.element("i32")).result

    def programs(self) -> ir.Value:
        return tt.GetNumPrograms(self._i32(0), self.element("i32")).result

    def range(self, size: int, axis: int = 0, rank: int = 1) -> ir.Value:
        """0, …, ``size - 1`` along ``axis`` of a tile of ``rank`` dimensions, the others of size 1: i32."""
        value = tt.MakeRange(self._i32(0), self._i32(size), self.type("i32", (size,))).result
        for at in (i for i in range(rank) if i != axis):
            value = self.expand(value, at)
        return value

    def expand(self, value: ir.Value, axis: int) -> ir.Value:
        shape = list(shape_of(value))
        shape.insert(axis, 1)
        return tt.ExpandDims(value, self._i32(axis), ir.RankedTensorType.get(shape, element_of(value))).result

    def spread(self, value: ir.Value, shape: Shape) -> ir.Value:
        """``value`` broadcast to ``shape``; a LoweringError where it cannot be."""
        have = shape_of(value)
        if have == shape:
            return value
        type_ = ir.RankedTensorType.get(shape, element_of(value))
        if not have:
            return tt.Splat(value, type_).result
        if len(have) != len(shape) or any(a not in (1, b) for a, b in zip(have, shape, strict=True)):
            raise LoweringError(f"a tile {have} does not broadcast to {shape}")
        return tt.Broadcast(value, type_).result

    def interleaved(self, even: ir.Value, odd: ir.Value, axis: int) -> ir.Value:
        """A tile of twice the size along ``axis``, whose elements are in turn those of both tiles."""
        shape = list(shape_of(even))
        value = tt.Join(even, odd, ir.RankedTensorType.get([*shape, 2], element_of(even))).result
        if axis < len(shape) - 1:
            order = [*range(axis + 1), len(shape), *range(axis + 1, len(shape))]
            sizes = [*shape[: axis + 1], 2, *shape[axis + 1 :]]
            moved = ir.RankedTensorType.get(sizes, element_of(even))
            value = tt.Trans(value, ir.DenseI32ArrayAttr.get(order), moved).result
        shape[axis] *= 2
        return self.reshaped(value, tuple(shape))

    def transposed(self, value: ir.Value) -> ir.Value:
        """A matrix with its axes exchanged."""
        rows, columns = shape_of(value)
        type_ = ir.RankedTensorType.get((columns, rows), element_of(value))
        return tt.Trans(value, ir.DenseI32ArrayAttr.get([1, 0]), type_).result

    def reshaped(self, value: ir.Value, shape: Shape) -> ir.Value:
        """The same elements in row-major order."""
        return tt.Reshape(value, ir.RankedTensorType.get(shape, element_of(value))).result

    def unified(self, *values: ir.Value) -> tuple[ir.Value, ...]:
        """``values``, all of their common shape."""
        shape = common_shape(*values)
        return tuple(self.spread(v, shape) for v in values) if shape else values

    # -- memory -------------------------------------------------------------------------------------------------------
    def pointers(self, base: ir.Value, offset: ir.Value) -> ir.Value:
        """``base`` moved by ``offset`` elements, a tile or one."""
        base = self.spread(base, shape_of(offset)) if shape_of(offset) else base
        return tt.AddPtr(base, offset, base.type).result

    def load(self, pointers: ir.Value, mask: ir.Value | None = None, other: ir.Value | None = None) -> ir.Value:
        """Elements where ``mask``, else ``other`` (zero where None); of the shape of the pointers."""
        shape = shape_of(pointers)
        if len(shape) > 1 and shape[-1] == 1 and any(size > 1 for size in shape):
            # Along its last axis Triton gives a thread several elements, which it loads one by one, also where all are the same one.
            given = (
                None if v is None else self.reshaped(self.spread(v, shape), shape[:-1]) for v in (pointers, mask, other)
            )
            return self.expand(self.load(*given), len(shape) - 1)
        type_ = _like(pointers, pointee_of(pointers))
        if mask is None:
            return tt.Load(pointers, None, None, type_).result
        if other is None:
            other = self.constant(0, str(pointee_of(pointers)))
        if shape:
            mask, other = self.spread(mask, shape), self.spread(other, shape)
        return tt.Load(pointers, mask, other, type_).result

    def store(self, pointers: ir.Value, value: ir.Value, mask: ir.Value | None) -> None:
        """Write ``value`` where ``mask``; pointers, value and mask broadcast."""
        given = self.unified(pointers, value) if mask is None else self.unified(pointers, value, mask)
        tt.Store(given[0], given[1], given[2] if mask is not None else None)

    def described(self, base: ir.Value, sizes: Sequence[ir.Value], stride: int, block: Shape) -> ir.Value:
        """A matrix of ``sizes`` (i32) at ``base``, its rows ``stride`` elements from each other, which is copied by tiles of ``block``."""
        type_ = tt.TensorDesc.get(ir.TypeAttr.get(ir.RankedTensorType.get(block, pointee_of(base))))
        strides = [self.constant(stride, "i64"), self.constant(1, "i64")]
        return tt.MakeTensorDescriptor(base, list(sizes), strides, self._i32(1), type_).result

    def described_load(self, matrix: ir.Value, at: Sequence[ir.Value]) -> ir.Value:
        """The tile of a `described` matrix that begins ``at`` row and column; zero outside of it."""
        tile = ir.TypeAttr(matrix.type.block).value
        return tt.DescriptorLoad(matrix, list(at), tile).result

    # -- tiles --------------------------------------------------------------------------------------------------------
    def dot(self, a: ir.Value, b: ir.Value, c: ir.Value, *, tf32: bool = False) -> ir.Value:
        """``a b + c``; f32 factors exact, or as TF32."""
        return tt.Dot(a, b, c, self._i32(0 if tf32 else 2), self._i32(0), c.type).d

    def reduce(
        self,
        tiles: Sequence[ir.Value],
        axis: int,
        combine: Callable[[Sequence[ir.Value], Sequence[ir.Value]], Sequence[ir.Value]],
    ) -> list[ir.Value]:
        """One or two ``tiles`` folded along ``axis``, which stays with size 1. ``combine``: of two elements of each."""
        tiles = self.unified(*tiles)
        elements = [element_of(t) for t in tiles]
        shape = list(shape_of(tiles[0]))
        del shape[axis]
        types = [ir.RankedTensorType.get(shape, e) if shape else e for e in elements]
        second = len(tiles) > 1
        found = tt.Reduce(
            tiles[0], tiles[1] if second else None, self._i32(axis), types[0], types[1] if second else None
        )
        block = found.operation.regions[0].blocks.append(*elements, *elements)
        with ir.InsertionPoint(block):
            arguments = list(block.arguments)
            kept = list(combine(arguments[: len(tiles)], arguments[len(tiles) :]))
            tt.ReduceReturn(kept[0], kept[1] if second else None)
        results = list(found.operation.results)
        if shape:
            return [self.expand(r, axis) for r in results]
        return [self.spread(r, (1,)) for r in results]

    def loop(
        self,
        low: ir.Value,
        high: ir.Value,
        step: int | ir.Value,
        carried: Sequence[ir.Value],
        body: Callable[[ir.Value, Sequence[ir.Value]], Sequence[ir.Value]],
        *,
        flat: bool = False,
    ) -> list[ir.Value]:
        """``body(i, carried)`` gives the next ``carried``, for i32 ``i`` from ``low`` below ``high``; the last ones are returned. ``flat``:
        Triton makes one loop of this and the one in it, whose copies it asks for ahead then across both.
        """
        by = self.constant(step, "i32") if isinstance(step, int) else step
        loop = scf.ForOp(low, high, by, list(carried))
        if flat:
            loop.operation.attributes["tt.flatten"] = ir.UnitAttr.get()
        with ir.InsertionPoint(loop.body):
            scf.YieldOp(list(body(loop.induction_variable, list(loop.inner_iter_args))))
        return list(loop.results_)

    # -- internals ----------------------------------------------------------------------------------------------------
    def _i32(self, value: int) -> ir.IntegerAttr:
        return ir.IntegerAttr.get(self.element("i32"), value)

    def _create(
        self, name: str, operands: Sequence[ir.Value], results: Sequence[ir.Type], **attributes: ir.Attribute
    ) -> ir.Value:
        return ir.Operation.create(name, results=results, operands=list(operands), attributes=attributes).results[0]


def common_shape(*values: ir.Value) -> Shape:
    """The shape to which all tiles among ``values`` broadcast; () of scalars."""
    shapes = [s for s in map(shape_of, values) if s]
    if len({len(s) for s in shapes}) > 1:
        raise LoweringError(f"tiles of different ranks: {shapes}")
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def dtype_of(value: ir.Value) -> str:
    """The dtype of a tile or scalar, by its name."""
    return str(element_of(value))


def kernel_text(
    name: str, pointers: Sequence[tuple[str, int]], scalars: int, body: Callable[[Builder, list[ir.Value]], None]
) -> str:
    """TTIR of one kernel. ``pointers``: dtype and promised alignment in bytes of each pointer argument; ``scalars`` i32 arguments follow.

    ``body`` gets the arguments. LoweringError: what it built does not verify (a bug of the emitter).
    """
    context = ir.Context()
    tt.load(context)
    with context, ir.Location.unknown():
        builder = Builder()
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            types = [tt.Ptr.get(ir.TypeAttr.get(builder.element(dtype))) for dtype, _ in pointers]
            types += [builder.element("i32")] * scalars
            function = tt.Func(ir.StringAttr.get(name), ir.TypeAttr.get(ir.FunctionType.get(types, [])))
            promised = [
                ir.DictAttr.get({"tt.divisibility": ir.IntegerAttr.get(builder.element("i32"), bytes_)})
                if bytes_ > 1
                else ir.DictAttr.get({})
                for _, bytes_ in pointers
            ] + [ir.DictAttr.get({})] * scalars
            function.operation.attributes["sym_visibility"] = ir.StringAttr.get("public")
            function.operation.attributes["arg_attrs"] = ir.ArrayAttr.get(promised)
            block = function.operation.regions[0].blocks.append(*types)
            with ir.InsertionPoint(block):
                body(builder, list(block.arguments))
                tt.Return([])
        problems = [] if module.operation.verify() else ["MLIR's verifier"]
        problems += tt.verify(module)
        if problems:
            raise LoweringError(f"{name} is not valid TTIR: {'; '.join(problems[:3])}")
        PassManager.parse("builtin.module(canonicalize,cse,loop-invariant-code-motion,cse)").run(module.operation)
        return tt.to_text(module)


def _like(value: ir.Value, element: ir.Type) -> ir.Type:
    shape = shape_of(value)
    return ir.RankedTensorType.get(shape, element) if shape else element
