"""Triton's ``tt`` dialect, the part that kernels here use, defined in MLIR from Python (IRDL): no triton is needed to build or read it.

A kernel is one ``tt.func`` over tiles: ranked tensors whose sizes are powers of two, of numbers or of pointers ``!tt.ptr<f16>``.
``load(context)`` registers the dialect; ``to_text`` and ``parse`` are the text form, which Triton 3.3 to 3.9 reads as it stands.
A dialect from Python cannot name an op ``reduce.return``, so inside MLIR it is ``tt.reduce_return``.

What IRDL cannot say of types, ``verify`` checks: shapes, dtypes, Triton's limits on a tile.
"""

# MLIR's bindings have no types: of the classes below the type checker sees nothing.
# mypy: disable-error-code="misc, call-arg, name-defined"

from collections.abc import Sequence
from typing import Any

from torch_mlir import ir
from torch_mlir.dialects import ext

#: A tile of more elements is not compiled.
MOST_ELEMENTS = 1 << 20

#: Names inside MLIR, and Triton's.
_SPELLING = (("tt.reduce_return", "tt.reduce.return"),)

_PURE = [ext.Pure]


class TT(ext.Dialect, name="tt"):
    """The dialect."""


class Ptr(TT.Type, name="ptr"):
    """``!tt.ptr<T>``: a pointer into global memory."""

    pointee: ir.TypeAttr


class TensorDesc(TT.Type, name="tensordesc"):
    """``!tt.tensordesc<tensor<64x32xf16>>``: a matrix in global memory, of which tiles of that size are copied."""

    block: ir.TypeAttr


class Func(TT.Operation, name="func", traits=[ir.IsIsolatedFromAboveTrait]):
    """A kernel. ``arg_attrs`` (discardable) may promise ``tt.divisibility`` of pointers, in bytes."""

    sym_name: ir.StringAttr
    function_type: ir.TypeAttr
    body: ext.Region


class Return(TT.Operation, name="return", traits=[ir.IsTerminatorTrait]):
    """The end of a kernel."""

    srcs: Sequence[ext.Operand[Any]]


class GetProgramId(TT.Operation, name="get_program_id", traits=_PURE):
    """Which of the programs along ``axis`` of the grid this is: i32."""

    axis: ir.IntegerAttr
    result: ext.Result[Any]


class GetNumPrograms(TT.Operation, name="get_num_programs", traits=_PURE):
    """How many programs there are along ``axis`` of the grid: i32."""

    axis: ir.IntegerAttr
    result: ext.Result[Any]


class MakeRange(TT.Operation, name="make_range", traits=_PURE):
    """``start``, …, ``end - 1``."""

    start: ir.IntegerAttr
    end: ir.IntegerAttr
    result: ext.Result[Any]


class Splat(TT.Operation, name="splat", traits=_PURE):
    """A tile of one scalar."""

    src: ext.Operand[Any]
    result: ext.Result[Any]


class ExpandDims(TT.Operation, name="expand_dims", traits=_PURE):
    """A dimension of size 1 more, at ``axis``."""

    src: ext.Operand[Any]
    axis: ir.IntegerAttr
    result: ext.Result[Any]


class Broadcast(TT.Operation, name="broadcast", traits=_PURE):
    """Dimensions of size 1 repeated."""

    src: ext.Operand[Any]
    result: ext.Result[Any]


class Join(TT.Operation, name="join", traits=_PURE):
    """Two tiles side by side along a new last dimension of size 2."""

    lhs: ext.Operand[Any]
    rhs: ext.Operand[Any]
    result: ext.Result[Any]


class Trans(TT.Operation, name="trans", traits=_PURE):
    """Dimension i of the result is dimension ``order[i]`` of the source."""

    src: ext.Operand[Any]
    order: Any = ext.attribute()
    result: ext.Result[Any]


class Reshape(TT.Operation, name="reshape", traits=_PURE):
    """The same elements in row-major order as another shape."""

    src: ext.Operand[Any]
    result: ext.Result[Any]


class AddPtr(TT.Operation, name="addptr", traits=_PURE):
    """A pointer moved by ``offset`` elements."""

    ptr: ext.Operand[Any]
    offset: ext.Operand[Any]
    result: ext.Result[Any]


class Load(TT.Operation, name="load"):
    """Where ``mask``: what lies there; else ``other``, and nothing is read."""

    ptr: ext.Operand[Any]
    mask: ext.Operand[Any] | None
    other: ext.Operand[Any] | None
    result: ext.Result[Any]


class MakeTensorDescriptor(TT.Operation, name="make_tensor_descriptor", traits=_PURE):
    """A matrix at ``base``: i32 sizes, i64 strides in elements, the last 1. ``padding`` 1: zeros outside of it."""

    base: ext.Operand[Any]
    shape: Sequence[ext.Operand[Any]]
    strides: Sequence[ext.Operand[Any]]
    padding: ir.IntegerAttr
    result: ext.Result[Any]


class DescriptorLoad(TT.Operation, name="descriptor_load"):
    """The tile of a matrix that begins at ``indices``, i32; zero outside of the matrix."""

    desc: ext.Operand[Any]
    indices: Sequence[ext.Operand[Any]]
    result: ext.Result[Any]


class Store(TT.Operation, name="store"):
    """Writes where ``mask``."""

    ptr: ext.Operand[Any]
    value: ext.Operand[Any]
    mask: ext.Operand[Any] | None


class Dot(TT.Operation, name="dot", traits=_PURE):
    """``a b + c``. ``inputPrecision`` of f32 factors: 0 TF32, 2 IEEE."""

    a: ext.Operand[Any]
    b: ext.Operand[Any]
    c: ext.Operand[Any]
    inputPrecision: ir.IntegerAttr  # noqa: N815
    maxNumImpreciseAcc: ir.IntegerAttr  # noqa: N815
    d: ext.Result[Any]


class Reduce(TT.Operation, name="reduce"):
    """One or two tiles folded along ``axis``, in no fixed order, by the region, which takes two elements of each. (IRDL gives all
    operands of a list one type, hence two by name.)
    """

    src: ext.Operand[Any]
    other: ext.Operand[Any] | None
    axis: ir.IntegerAttr
    result: ext.Result[Any]
    other_result: ext.Result[Any] | None
    combine: ext.Region


class ReduceReturn(TT.Operation, name="reduce_return", traits=[ir.IsTerminatorTrait]):
    """The end of a ``reduce``'s region."""

    result: ext.Operand[Any]
    other: ext.Operand[Any] | None


class ExternElementwise(TT.Operation, name="extern_elementwise", traits=_PURE):
    """A function of NVIDIA's libdevice, element by element."""

    srcs: Sequence[ext.Operand[Any]]
    libname: ir.StringAttr
    libpath: ir.StringAttr
    symbol: ir.StringAttr
    pure: Any = ext.attribute()
    result: ext.Result[Any]


class Bitcast(TT.Operation, name="bitcast", traits=_PURE):
    """The same bits as another type of the same size."""

    src: ext.Operand[Any]
    result: ext.Result[Any]


class PreciseDiv(TT.Operation, name="precise_divf", traits=_PURE):
    """Division of f32 rounded as IEEE 754 says; ``arith.divf`` is off by up to 2 ulp."""

    x: ext.Operand[Any]
    y: ext.Operand[Any]
    result: ext.Result[Any]


class PreciseSqrt(TT.Operation, name="precise_sqrt", traits=_PURE):
    """The square root of f32 rounded as IEEE 754 says; ``math.sqrt`` is an approximation."""

    x: ext.Operand[Any]
    result: ext.Result[Any]


def load(context: ir.Context) -> None:
    """Register the dialect in ``context``, once."""
    with context, ir.Location.unknown():
        TT.load()


def to_text(module: ir.Module) -> str:
    """As Triton reads it."""
    text = str(module)
    for ours, theirs in _SPELLING:
        text = text.replace(f'"{ours}"', f'"{theirs}"')
    return text


def parse(text: str) -> ir.Module:
    """A module of ``to_text``, in the current context, where the dialect is loaded; MLIRError where it does not parse or verify."""
    for ours, theirs in _SPELLING:
        text = text.replace(f'"{theirs}"', f'"{ours}"')
    return ir.Module.parse(text)


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The sizes of a tile; () of a scalar."""
    return tuple(value.type.shape) if isinstance(value.type, ir.RankedTensorType) else ()


def element_of(value: ir.Value) -> Any:
    """The type of a tile's elements, or of a scalar."""
    return value.type.element_type if isinstance(value.type, ir.RankedTensorType) else value.type


def pointee_of(value: ir.Value) -> Any:
    """The type that a pointer, or a tile of pointers, points to."""
    return ir.TypeAttr(element_of(value).pointee).value


def verify(module: ir.Module) -> list[str]:
    """What is wrong with the ``tt`` ops of a module, one line each, beyond what MLIR's verifier says."""
    problems: list[str] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name.startswith("tt."):
            wrong = _wrong(op)
            if wrong:
                problems.append(f"{op.name}: {wrong} in {op}")
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return problems


def _wrong(op: ir.Operation) -> str | None:
    ins, outs = list(op.operands), list(op.results)
    for value in (*ins, *outs):
        elements = 1
        for size in shape_of(value):
            elements *= size
            if size < 1 or size & (size - 1):
                return f"a tile of {size} along a dimension, which is no power of two"
        if elements > MOST_ELEMENTS:
            return f"a tile of {elements} elements, more than {MOST_ELEMENTS}"
    match op.name:
        case "tt.load" | "tt.store":
            return _wrong_access(op, ins)
        case "tt.addptr":
            if shape_of(ins[0]) != shape_of(ins[1]):
                return f"pointers {shape_of(ins[0])}, offsets {shape_of(ins[1])}"
        case "tt.broadcast":
            pairs = zip(shape_of(ins[0]), shape_of(outs[0]), strict=False)
            if len(shape_of(ins[0])) != len(shape_of(outs[0])) or any(a not in (1, b) for a, b in pairs):
                return f"{shape_of(ins[0])} does not broadcast to {shape_of(outs[0])}"
        case "tt.dot":
            (m, k), (k2, n) = shape_of(ins[0]), shape_of(ins[1])
            if k != k2 or shape_of(ins[2]) != (m, n) or shape_of(outs[0]) != (m, n):
                return f"factors {(m, k)} and {(k2, n)}, accumulator {shape_of(ins[2])}"
            if element_of(ins[0]) != element_of(ins[1]):
                return f"factors of {element_of(ins[0])} and {element_of(ins[1])}"
        case "tt.reduce":
            axis = ir.IntegerAttr(op.attributes["axis"]).value
            shapes = {shape_of(value) for value in ins}
            if len(shapes) != 1 or not 0 <= axis < len(shape_of(ins[0])):
                return f"tiles {sorted(shapes)} along axis {axis}"
    return None


def _wrong_access(op: ir.Operation, ins: Sequence[ir.Value]) -> str | None:
    pointer, result = ins[0], op.results[0] if op.name == "tt.load" else ins[1]
    if str(element_of(result)) != str(pointee_of(pointer)):
        return f"{element_of(result)} at a pointer to {pointee_of(pointer)}"
    shapes = {shape_of(value) for value in (*ins, result)}
    return None if len(shapes) == 1 else f"shapes {sorted(shapes)}"
