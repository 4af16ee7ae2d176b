"""Reading views (``tensor.extract_slice``, reshapes, transposes) and assemblies (pad, concat, insert) into ``Op``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_mlir import ir

from effc.compiler.ir.expr import Expr, as_expr, product

if TYPE_CHECKING:
    from effc.compiler.pipeline.read import Reader


def read_slice(reader: Reader, op: ir.Operation) -> None:
    offsets, sizes, strides = _offsets_sizes_strides(reader, op, 1)
    dropped = _dropped_dims(sizes, [int(d) for d in op.results[0].type.shape])
    node = reader.add(
        op, "slice", [reader.tensor(op.operands[0])], [tuple(s for i, s in enumerate(sizes) if i not in dropped)]
    )
    node.attributes.update(offsets=offsets, strides=strides, dropped=dropped)


def read_insert(reader: Reader, op: ir.Operation) -> None:
    offsets, sizes, strides = _offsets_sizes_strides(reader, op, 2)
    source, dest = reader.tensor(op.operands[0]), reader.tensor(op.operands[1])
    node = reader.add(op, "insert", [source, dest], [dest.sizes])
    dropped = _dropped_dims(sizes, [int(d) for d in op.operands[0].type.shape])
    node.attributes.update(offsets=offsets, strides=strides, dropped=dropped)


def _offsets_sizes_strides(
    reader: Reader, op: ir.Operation, first: int
) -> tuple[tuple[Expr, ...], tuple[Expr, ...], tuple[Expr, ...]]:
    counts = [int(n) for n in op.attributes["operandSegmentSizes"]][-3:]
    values = list(op.operands)[first:]
    a, b = counts[0], counts[0] + counts[1]
    return (
        reader.sizes.mixed(op.attributes["static_offsets"], values[:a]),
        reader.sizes.mixed(op.attributes["static_sizes"], values[a:b]),
        reader.sizes.mixed(op.attributes["static_strides"], values[b:]),
    )


def read_expand(reader: Reader, op: ir.Operation) -> None:
    sizes = reader.sizes.mixed(op.attributes["static_output_shape"], list(op.operands)[1:])
    _reshape(reader, op, "expand", sizes)


def read_collapse(reader: Reader, op: ir.Operation) -> None:
    source = reader.sizes.shape(op.operands[0])
    groups = [[ir.IntegerAttr(i).value for i in g] for g in op.attributes["reassociation"]]
    _reshape(reader, op, "collapse", tuple(product(source[i] for i in g) for g in groups))


def _reshape(reader: Reader, op: ir.Operation, kind: str, sizes: tuple[Expr, ...]) -> None:
    node = reader.add(op, kind, [reader.tensor(op.operands[0])], [sizes])
    node.attributes["groups"] = tuple(tuple(ir.IntegerAttr(i).value for i in g) for g in op.attributes["reassociation"])


def read_transpose(reader: Reader, op: ir.Operation) -> None:
    order = [int(p) for p in op.attributes["permutation"]]
    reader.remap(
        op, reader.sizes.shape(op.operands[1]), tuple(as_expr(f"d{order.index(i)}") for i in range(len(order)))
    )


def read_broadcast(reader: Reader, op: ir.Operation) -> None:
    sizes, added = reader.sizes.shape(op.operands[1]), [int(d) for d in op.attributes["dimensions"]]
    reader.remap(op, sizes, tuple(as_expr(f"d{i}") for i in range(len(sizes)) if i not in added))


def read_cast(reader: Reader, op: ir.Operation) -> None:
    reader.add(op, "cast", [reader.tensor(op.operands[0])], [reader.sizes.shape(op.operands[0])])


def read_pad(reader: Reader, op: ir.Operation) -> None:
    source = reader.tensor(op.operands[0])
    counts = [int(n) for n in op.attributes["operandSegmentSizes"]]
    values = list(op.operands)[1:]
    low = reader.sizes.mixed(op.attributes["static_low"], values[: counts[1]])
    high = reader.sizes.mixed(op.attributes["static_high"], values[counts[1] :])
    node = reader.add(op, "pad", [source], [tuple(a + s + b for a, s, b in zip(low, source.sizes, high, strict=True))])
    yielded = op.regions[0].blocks[0].operations[-1 + len(op.regions[0].blocks[0].operations)].operands[0]
    node.body = reader.bodies.scalar(yielded)
    node.attributes.update(low=low)


def read_concat(reader: Reader, op: ir.Operation) -> None:
    operands = [reader.tensor(v) for v in op.operands]
    axis = ir.IntegerAttr(op.attributes["dim"]).value
    sizes = list(operands[0].sizes)
    for other in operands[1:]:
        sizes[axis] = sizes[axis] + other.sizes[axis]
    reader.add(op, "concat", operands, [tuple(sizes)]).attributes["axis"] = axis


def _dropped_dims(sizes: tuple[Expr, ...], result: list[int]) -> frozenset[int]:
    """Which unit dims a rank-reducing slice drops: the earliest that let the rest match the result's static sizes."""
    dropped: set[int] = set()
    position = 0
    for i, size in enumerate(sizes):
        left = len(sizes) - i - (len(result) - position)
        matches = position < len(result) and (size.constant is None or size.constant == result[position])
        if left > 0 and not (matches and (size.constant != 1 or _rest_matches(sizes[i + 1 :], result[position + 1 :]))):
            dropped.add(i)
        else:
            position += 1
    return frozenset(dropped)


def _rest_matches(sizes: tuple[Expr, ...], result: list[int]) -> bool:
    """Whether ``result`` is ``sizes`` without some of its unit dims."""
    if not sizes:
        return not result
    if (
        result
        and (sizes[0].constant is None or sizes[0].constant == result[0])
        and _rest_matches(sizes[1:], result[1:])
    ):
        return True
    return sizes[0].constant == 1 and _rest_matches(sizes[1:], result)
