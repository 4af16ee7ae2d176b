"""A spec's body on a tile: where the tile lies in the iteration space, and the values of instructions there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch_mlir import ir

from effc.compiler.codegen.gpu.builder import Builder, Shape, common_shape, dtype_of
from effc.compiler.codegen.gpu.dialect import MOST_ELEMENTS, shape_of
from effc.compiler.codegen.gpu.indices import MOST_I32, Indices, Step, address_dtype, evaluated, widened
from effc.compiler.codegen.gpu.ops import Ops
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr, const, floordiv, mod, var
from effc.compiler.ir.spec import Instr, KernelSpec


@dataclass(frozen=True)
class Axis:
    """A dimension of a tile that runs over ``dims``, flattened row-major: ``index`` of the flattened dimension (i32, a tile of more than
    one element along this axis alone) and ``mask``, where it is inside; None: all is. ``step``: of a single dim that a loop moves.
    ``pairs``: the axis of half as many elements, each of which stands for an even one and its neighbour.
    """

    dims: tuple[int, ...]
    index: ir.Value
    mask: ir.Value | None
    step: Step | None = None
    pairs: Axis | None = None


class Frame:
    """Axes of a tile in their order, and scalars: the indices of further dims, and symbols, by name."""

    def __init__(self, b: Builder, spec: KernelSpec, axes: Sequence[Axis], scalars: Mapping[str, ir.Value]) -> None:
        self.axes, self.scalars = tuple(axes), scalars
        values = dict(scalars)
        names = frozenset([*(f"d{i}" for i in range(len(spec.dims))), *spec.symbols])
        steps = {f"d{a.dims[0]}": a.step for a in axes if a.step is not None}
        self.indices = Indices(b, values, names, steps)
        for axis in axes:
            self.indices.values.update(unflattened(b, spec, scalars, axis.dims, axis.index))

    def mask(self, shape: Shape, b: Builder) -> ir.Value | None:
        """Where points of a tile of ``shape`` are inside: the masks of the axes along which it has more than one."""
        found: ir.Value | None = None
        for i, axis in enumerate(self.axes):
            if shape and shape[i] > 1:
                found = b.both(found, axis.mask)
        return found


def unflattened(
    b: Builder, spec: KernelSpec, symbols: Mapping[str, ir.Value], dims: Sequence[int], index: ir.Value
) -> dict[str, ir.Value]:
    """The indices of ``dims``, by name, at a flattened one. ``symbols``: at least the spec's."""
    found: dict[str, ir.Value] = {}
    rest = index
    for position, dim in enumerate(reversed(dims)):
        if position == len(dims) - 1:
            found[f"d{dim}"] = rest
            break
        size = evaluated(b, spec.dims[dim].size, symbols)
        found[f"d{dim}"] = b.op("arith.remsi", rest, size)
        rest = b.op("arith.divsi", rest, size)
    return found


def flat_size(spec: KernelSpec, dims: Sequence[int]) -> Expr:
    """Points of ``dims`` together."""
    total = const(1)
    for dim in dims:
        total = total * spec.dims[dim].size
    return total


def axis_size(spec: KernelSpec, dims: Sequence[int]) -> Expr:
    """As `flat_size`, of an axis of tiles, whose indices are i32; LoweringError: it is too long."""
    size = flat_size(spec, dims)
    if (size.constant or 0) > MOST_I32 - MOST_ELEMENTS:  # the last tile may reach beyond
        raise LoweringError(f"{size} points along one axis: a GPU's kernels number them by 32 bits")
    return size


def numbered(spec: KernelSpec, *axes: Sequence[int]) -> tuple[Expr, ...]:
    """Where the numbers of points along ``axes`` end, of those whose length is known at a launch only: `axis_size` cannot refuse them."""
    return tuple(size + MOST_ELEMENTS for dims in axes if (size := flat_size(spec, dims)).constant is None)


class Body:
    """Values of a spec's instructions in a frame, each computed once. ``pointers``: of the operands; ``known``: values from elsewhere.

    ``error``: pointer to the i32 cell into which a failed ``check`` writes 1 + its number.
    """

    def __init__(
        self,
        b: Builder,
        spec: KernelSpec,
        frame: Frame,
        pointers: Sequence[ir.Value],
        error: ir.Value,
        known: Mapping[int, ir.Value],
    ) -> None:
        self.b, self.spec, self.frame, self.pointers, self.error = b, spec, frame, pointers, error
        self.ops = Ops(b)
        self.values = dict(known)

    def value(self, number: int) -> ir.Value:
        """The value of an instruction: a scalar, or a tile of the frame's rank with size 1 along axes on which it does not depend."""
        found = self.values.get(number)
        if found is None:
            found = self.values[number] = self._evaluate(self.spec.body[number])
        return found

    def _evaluate(self, instr: Instr) -> ir.Value:
        if instr.op == "load":
            return self._load(instr)
        if instr.op == "index":
            return self.frame.indices.value(self._resolved(instr["expr"]), instr.dtype)
        if instr.op in ("reduce", "contract", "store", "check"):
            raise LoweringError(f"{instr.op} is not a value of a tile")
        return self.ops.emit(instr, [self.value(a) for a in instr.args])

    def _resolved(self, e: Expr) -> Expr:
        """``e``, the values of gathered indices in it being known to the frame."""
        for name in sorted(e.variables()):
            if name[0] == "v" and name[1:].isdigit() and name not in self.frame.indices.values:
                self.frame.indices.values[name] = self.value(int(name[1:]))
        return e

    def _pointers(self, instr: Instr) -> ir.Value:
        dtype = address_dtype(self.spec, instr["operand"], instr["address"])
        base = self.pointers[instr["operand"]]
        moving, still = self.frame.indices.split(self._resolved(instr["address"]), dtype)
        return self.b.pointers(base if moving is None else self.b.pointers(base, moving), still)

    def _nibble(self, instr: Instr) -> ir.Value:
        """A code of two in a byte, in the lower bits of an i8; the bits above are not the code's."""
        b, address = self.b, instr["address"]
        for number, axis in enumerate(self.frame.axes):
            halved = halves(address, axis.dims[0]) if axis.pairs is not None else None
            if axis.pairs is not None and halved is not None:
                return self._two_nibbles(instr, number, axis.pairs, halved)
        byte = self._plain_load(
            replace(instr, attributes=(("address", floordiv(address, const(2))), ("operand", instr["operand"])))
        )
        half = mod(address, const(2))
        odd = self.frame.indices.value(half, address_dtype(self.spec, instr["operand"], half))
        shift = b.op("arith.muli", odd, b.constant(4, dtype_of(odd)))
        return b.op("arith.shrui", byte, widened(b, shift, "i8"))

    def _two_nibbles(self, instr: Instr, number: int, pairs: Axis, address: Expr) -> ir.Value:
        """As `_nibble`, each byte being read once, at ``address`` over the ``pairs`` of axis ``number``."""
        b, axes = self.b, list(self.frame.axes)
        axes[number] = pairs
        frame = Frame(b, self.spec, axes, self.frame.scalars)
        halved = replace(instr, attributes=(("address", address), ("operand", instr["operand"])))
        bytes_ = Body(b, self.spec, frame, self.pointers, self.error, {})._plain_load(halved)
        return b.interleaved(bytes_, b.op("arith.shrui", bytes_, b.constant(4, "i8")), number)

    def _load(self, instr: Instr) -> ir.Value:
        packed = self.spec.operands[instr["operand"]].role == "packed"
        return self._nibble(instr) if packed else self._plain_load(instr)

    def _plain_load(self, instr: Instr) -> ir.Value:
        b = self.b
        pointers = self._pointers(instr)
        args = [self.value(a) for a in instr.args]
        shape = common_shape(pointers, *args)
        if shape:
            pointers = b.spread(pointers, shape)
        inside = self.frame.mask(shape, b)
        is_bool = instr.dtype == "i1"
        if not args:
            found = b.load(pointers, inside)
            return b.compare("arith.cmpi", "ne", found, b.constant(0, "i8")) if is_bool else found
        mask = b.both(inside, args[0])
        if is_bool:
            other = b.op("arith.extui", args[1], dtype="i8")
            return b.compare("arith.cmpi", "ne", b.load(pointers, mask, other), b.constant(0, "i8"))
        return b.load(pointers, mask, args[1])

    def store(self, instr: Instr) -> None:
        """A ``store`` at all points of the tile on which its address depends."""
        b = self.b
        value, pointers = self.value(instr.args[0]), self._pointers(instr)
        args = [self.value(a) for a in instr.args[1:]]
        shape = common_shape(pointers, value, *args)
        mask = self.frame.mask(shape, b)
        for more in args:
            mask = b.both(mask, more)
        if dtype_of(value) == "i1":
            value = b.op("arith.extui", value, dtype="i8")
        b.store(pointers, value, mask)

    def check(self, number: int) -> None:
        """A ``check``: where it fails at a point inside, the error cell is written."""
        b = self.b
        ok = self.value(self.spec.body[number].args[0])
        failed = b.op("arith.xori", ok, b.constant(1, "i1"))
        failed = b.both(failed, self.frame.mask(shape_of(ok), b))
        b.store(self.error, b.constant(number + 1, "i32"), failed)


def halves(address: Expr, dim: int) -> Expr | None:
    """Half of an address of which two neighbours along ``dim``, the first at an even number, are always one half; None: others are."""
    step = address.coefficient(f"d{dim}")
    rest = address - var(f"d{dim}")
    even = all(c % 2 == 0 for _, c in rest.terms)
    plain = not any(name[0] == "v" for name in address.variables())
    if step is None or step.constant != 1 or not even or not plain:
        return None
    return Expr(tuple((monomial, c // 2) for monomial, c in rest.terms)) + var(f"d{dim}")


def paired(b: Builder, dim: int, start: ir.Value, block: int, axis: int, rank: int, size: ir.Value | None) -> Axis:
    """The `Axis.pairs` of ``block`` elements from ``start`` on, which is a multiple of it; ``size``: where they end; None: not before."""
    half, local = b.op("arith.divsi", start, b.constant(2, "i32")), b.range(block // 2, axis, rank)
    index = b.op("arith.addi", half, local)
    mask = None
    if size is not None:
        ends = b.op("arith.divsi", b.op("arith.addi", size, b.constant(1, "i32")), b.constant(2, "i32"))
        mask = b.compare("arith.cmpi", "slt", index, ends)
    return Axis((dim,), index, mask, Step(half, local, block // 2))


def identity_of(b: Builder, kind: str, dtype: str) -> ir.Value:
    """The value that changes nothing under a ``reduce`` of ``kind``."""
    floats = dtype[0] in "fb"
    if kind in ("add", "or", "xor"):
        return b.constant(0, dtype)
    if kind == "mul":
        return b.constant(1, dtype)
    if kind == "and":
        return b.constant(-1, dtype)
    largest = kind in ("min", "argmin")
    if floats:
        return b.constant("inf" if largest else "-inf", dtype)
    if dtype == "i1":
        return b.constant(int(largest), dtype)
    limit = 1 << (int(dtype[1:]) - 1)
    return b.constant(limit - 1 if largest else -limit, dtype)


Combine = Callable[[Sequence[ir.Value], Sequence[ir.Value]], Sequence[ir.Value]]
_INTEGER_OPS = {"add": "addi", "mul": "muli", "max": "maxsi", "min": "minsi", "and": "andi", "or": "ori", "xor": "xori"}
#: On bool, as eager: a sum is "any", a product "all".
_BOOL_OPS = {"add": "ori", "mul": "andi", "max": "ori", "min": "andi", "and": "andi", "or": "ori", "xor": "xori"}


def combiner(ops: Ops, kind: str, dtype: str) -> Combine:
    """What folds two values of ``dtype``, with an index behind for ``argmax`` and ``argmin``; LoweringError: no such kind."""
    b = ops.b
    if kind in ("argmax", "argmin"):
        return lambda x, y: _better(b, kind == "argmax", dtype, x, y)
    if dtype[0] in "fb":
        if kind in ("max", "min"):
            return lambda x, y: [ops.extremum(kind == "max", x[0], y[0])]
        if kind in ("add", "mul"):
            return lambda x, y: [b.op(f"arith.{kind}f", x[0], y[0])]
    else:
        table = _BOOL_OPS if dtype == "i1" else _INTEGER_OPS
        if kind in table:
            return lambda x, y: [b.op(f"arith.{table[kind]}", x[0], y[0])]
    raise LoweringError(f"the GPU's code generator has no reduction {kind!r} of {dtype}")


def _better(b: Builder, largest: bool, dtype: str, x: Sequence[ir.Value], y: Sequence[ir.Value]) -> list[ir.Value]:
    """The larger value with its index, NaN above all; of equals the lower index."""
    if dtype[0] in "fb":
        better = b.compare("arith.cmpf", "ogt" if largest else "olt", y[0], x[0])
        same = b.compare("arith.cmpf", "oeq", y[0], x[0])
        x_nan, y_nan = (b.compare("arith.cmpf", "uno", v, v) for v in (x[0], y[0]))
        same = b.op("arith.ori", same, b.op("arith.andi", x_nan, y_nan))
        better = b.op("arith.ori", better, b.op("arith.andi", y_nan, b.op("arith.xori", x_nan, b.constant(1, "i1"))))
    else:
        sign = "u" if dtype == "i1" else "s"
        better = b.compare("arith.cmpi", f"{sign}{'gt' if largest else 'lt'}", y[0], x[0])
        same = b.compare("arith.cmpi", "eq", y[0], x[0])
    earlier = b.compare("arith.cmpi", "slt", y[1], x[1])
    take = b.op("arith.ori", better, b.op("arith.andi", same, earlier))
    return [b.select(take, new, old) for new, old in zip(y, x, strict=True)]
