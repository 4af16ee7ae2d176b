"""TTIR kernels run by numpy, program by program: what a kernel computes, without a GPU and without triton.

``launch(text, grid, buffers)`` runs the text that Triton would compile. Memory is simulated: each buffer has an address range of its
own, so an access outside of its buffer, a misaligned pointer, an element into which two programs write different values, and one that a
program reads after another has written it all raise. bf16 is held in float32 and rounded where the kernel rounds. It checks what a kernel
means; how Triton distributes it over threads it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch_mlir import ir
from tt_functions import BINARY, CASTS, EXTERN, UNARY, compared, to_bf16, to_tf32

from effc.compiler.codegen.gpu import dialect as tt

Array = NDArray[Any]
Values = list[Any]
Step = Callable[[dict[int, Any]], None]

NUMPY = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": np.float32, "i1": np.bool_, "i8": np.int8,
    "i16": np.int16, "i32": np.int32, "i64": np.int64,
}  # fmt: skip
_SPACING = 1 << 40


class Fault(Exception):
    """A kernel did what it must not: it accessed memory that is not its own, or raced with another program."""


@dataclass
class Region:
    """``data``: bytes at ``address``, a view of the caller's memory. ``itemsize``: of its elements; 0: any."""

    address: int
    data: NDArray[np.uint8]
    itemsize: int = 0
    writer: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        self.writer = np.full(self.data.size, -1, np.int32)


class Memory:
    """All that kernels may touch; ``program`` is the one that runs. Who wrote what is forgotten between kernels (`fresh`)."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self.regions = list(regions)
        self.program, self.programs = 0, 1

    def fresh(self) -> None:
        for region in self.regions:
            region.writer.fill(-1)

    def _elements(self, pointers: Array, size: int) -> tuple[Region, Array]:
        first = int(pointers.min())
        region = next((r for r in self.regions if r.address <= first < r.address + r.data.size), None)
        if region is None:
            raise Fault("a pointer outside of all buffers")
        offsets = pointers - region.address
        if region.itemsize not in (0, size):
            raise Fault(f"elements of {size} bytes in a buffer of {region.itemsize}")
        if np.any(pointers % size):
            raise Fault("a misaligned pointer")
        if offsets.max() + size > region.data.size:
            raise Fault(f"element {offsets.max() // size} of a buffer of {region.data.size // size}")
        return region, offsets

    def load(self, pointers: Array, dtype: np.dtype[Any]) -> Array:
        region, offsets = self._elements(pointers, dtype.itemsize)
        writers = region.writer[offsets]
        foreign = (writers != -1) & (writers != self.program)
        if foreign.any():
            raise Fault(f"element {offsets[foreign][0] // dtype.itemsize} is read after another program has written it")
        found: Array = _elements_at(region, offsets, dtype)
        return found

    def store(self, pointers: Array, values: Array) -> None:
        region, offsets = self._elements(pointers, values.itemsize)
        writers = region.writer[offsets]
        foreign = (writers != -1) & (writers != self.program)
        if foreign.any() and np.any(_elements_at(region, offsets[foreign], values.dtype) != values[foreign]):
            raise Fault(f"element {offsets[foreign][0] // values.itemsize} is written by two programs")
        region.writer[offsets] = self.program
        region.data[offsets[:, None] + np.arange(values.itemsize)] = (
            np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.itemsize)
        )


def _elements_at(region: Region, offsets: Array, dtype: np.dtype[Any]) -> Array:
    raw = np.ascontiguousarray(region.data[offsets[:, None] + np.arange(dtype.itemsize)])
    found: Array = raw.view(dtype).reshape(-1)
    return found


def launch(text: str, grid: int, buffers: Sequence[Array], scalars: Sequence[int] = ()) -> None:
    """Run ``grid`` programs of the only kernel in ``text`` on ``buffers``, an array a pointer argument (bf16 as uint16), each far from
    the others, then i32 ``scalars``.
    """
    regions = [Region((i + 1) * _SPACING, b.view(np.uint8), b.itemsize) for i, b in enumerate(buffers)]
    run(text, grid, Memory(regions), [*(r.address for r in regions), *scalars])


def run(text: str, grid: int, memory: Memory, arguments: Sequence[int]) -> None:
    """Run ``grid`` programs of the only kernel in ``text``; ``arguments``: addresses and i32 numbers."""
    context = ir.Context()
    tt.load(context)
    memory.fresh()
    with context, ir.Location.unknown():
        module = tt.parse(text)
        function = next(op for op in module.body.operations if op.operation.name == "tt.func").operation
        block = function.regions[0].blocks[0]
        execute = _Compiler(memory).block(block)
        kinds = [np.int32 if str(a.type) == "i32" else np.int64 for a in block.arguments]
        given = [kind(value) for kind, value in zip(kinds, arguments, strict=True)]
        with np.errstate(all="ignore"):
            memory.programs = grid
            for program in range(grid):
                memory.program = program
                execute(given, {})


_Run = Callable[[Sequence[Any], dict[int, Any]], Values]


def _dtype(value: ir.Value) -> str:
    return str(tt.element_of(value))


def _integer(op: ir.Operation, name: str) -> int:
    return int(ir.IntegerAttr(op.attributes[name]).value)


class _Compiler:
    """Turns blocks into lists of Python calls, so that attributes and types are read once and not once a program."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.numbers: dict[Any, int] = {}

    def number(self, value: ir.Value) -> int:
        return self.numbers.setdefault(value, len(self.numbers))

    def block(self, block: ir.Block) -> _Run:
        arguments = [self.number(a) for a in block.arguments]
        steps: list[tuple[Callable[..., Any], list[int], list[int]]] = []
        terminator: list[int] = []
        for op in (o.operation for o in block.operations):
            operands = [self.number(o) for o in op.operands]
            if op.name in ("tt.return", "scf.yield", "tt.reduce_return"):
                terminator = operands
                break
            steps.append((self.op(op), operands, [self.number(r) for r in op.results]))

        def run(given: Sequence[Any], env: dict[int, Any]) -> Values:
            env.update(zip(arguments, given, strict=True))
            for function, operands, results in steps:
                found = function(env, *[env[o] for o in operands])
                if len(results) == 1:
                    env[results[0]] = found
                else:
                    env.update(zip(results, found or (), strict=True))
            return [env[t] for t in terminator]

        return run

    def op(self, op: ir.Operation) -> Callable[..., Any]:
        """A function of the environment and the operands."""
        name = op.name
        if name.startswith("tt."):
            made = getattr(self, "_" + name[3:])(op)
        elif name == "arith.constant":
            made = self._constant(op)
        elif name == "scf.for":
            made = self._for(op)
        elif name == "arith.select":
            made = lambda _, c, x, y: np.where(c, x, y)  # noqa: E731
        elif name in ("arith.cmpi", "arith.cmpf"):
            function = compared(name, _integer(op, "predicate"))
            made = lambda _, x, y: function(x, y)  # noqa: E731
        else:
            made = self._elementwise(op, name)
        return made  # type: ignore[no-any-return]

    # -- values -------------------------------------------------------------------------------------------------------
    def _constant(self, op: ir.Operation) -> Callable[..., Any]:
        attribute, result = op.attributes["value"], op.results[0]
        kind = NUMPY[_dtype(result)]
        if tt.shape_of(result):
            element = ir.DenseElementsAttr(attribute).get_splat_value().value
            value: Any = np.full(tt.shape_of(result), element).astype(kind)
        else:
            value = kind(attribute.value)
        return lambda _: value

    def _elementwise(self, op: ir.Operation, name: str) -> Callable[..., Any]:
        source, result = _dtype(op.operands[0]), _dtype(op.results[0])
        kind = NUMPY[result]
        if name in CASTS:
            cast = CASTS[name]
            if result == "bf16":
                return lambda _, x: to_bf16(cast(x, np.dtype(np.float32)))
            return lambda _, x: cast(x, np.dtype(kind))
        function = UNARY.get(name) or BINARY.get(name)
        if function is None:
            raise NotImplementedError(f"{name} of {source}")
        if result == "bf16":
            return lambda _, *xs: to_bf16(function(*xs).astype(np.float32))
        return lambda _, *xs: np.asarray(function(*xs)).astype(kind)

    def _extern_elementwise(self, op: ir.Operation) -> Callable[..., Any]:
        symbol = ir.StringAttr(op.attributes["symbol"]).value
        function, kind = EXTERN(symbol), NUMPY[_dtype(op.results[0])]
        return lambda _, *xs: np.asarray(function(*(np.asarray(x, np.float64) for x in xs))).astype(kind)

    def _precise_divf(self, op: ir.Operation) -> Callable[..., Any]:
        return lambda _, x, y: np.divide(x, y)

    def _precise_sqrt(self, op: ir.Operation) -> Callable[..., Any]:
        return lambda _, x: np.sqrt(x)

    # -- shapes -------------------------------------------------------------------------------------------------------
    def _get_program_id(self, op: ir.Operation) -> Callable[..., Any]:
        assert _integer(op, "axis") == 0, "kernels here have a grid of one dimension"
        return lambda _: np.int32(self.memory.program)

    def _get_num_programs(self, op: ir.Operation) -> Callable[..., Any]:
        return lambda _: np.int32(self.memory.programs)

    def _make_range(self, op: ir.Operation) -> Callable[..., Any]:
        value = np.arange(_integer(op, "start"), _integer(op, "end"), dtype=np.int32)
        return lambda _: value

    def _splat(self, op: ir.Operation) -> Callable[..., Any]:
        shape = tt.shape_of(op.results[0])
        return lambda _, x: np.broadcast_to(x, shape)

    _broadcast = _splat

    def _expand_dims(self, op: ir.Operation) -> Callable[..., Any]:
        axis = _integer(op, "axis")
        return lambda _, x: np.expand_dims(x, axis)

    def _join(self, op: ir.Operation) -> Callable[..., Any]:
        return lambda _, x, y: np.stack([x, y], -1)

    def _trans(self, op: ir.Operation) -> Callable[..., Any]:
        order = list(ir.DenseI32ArrayAttr(op.attributes["order"]))
        return lambda _, x: np.transpose(x, order)

    def _reshape(self, op: ir.Operation) -> Callable[..., Any]:
        shape = tt.shape_of(op.results[0])
        return lambda _, x: np.reshape(x, shape)

    def _bitcast(self, op: ir.Operation) -> Callable[..., Any]:
        source, result = _dtype(op.operands[0]), _dtype(op.results[0])

        def cast(_: Any, x: Any) -> Any:
            bits = _rounded_bits(x) if source == "bf16" else np.ascontiguousarray(x)
            if result == "bf16":
                return _from_bits(bits.view(np.uint16)).reshape(np.shape(x))
            return bits.view(NUMPY[result]).reshape(np.shape(x))

        return cast

    # -- memory -------------------------------------------------------------------------------------------------------
    def _addptr(self, op: ir.Operation) -> Callable[..., Any]:
        dtype = str(tt.pointee_of(op.results[0]))
        size = 2 if dtype == "bf16" else np.dtype(NUMPY[dtype]).itemsize
        return lambda _, p, o: p + np.asarray(o).astype(np.int64) * size

    def _load(self, op: ir.Operation) -> Callable[..., Any]:
        dtype = _dtype(op.results[0])
        stored = np.dtype(np.uint16 if dtype == "bf16" else NUMPY[dtype])

        def read(_: Any, pointers: Any, mask: Any = True, other: Any = 0) -> Any:
            pointers = np.asarray(pointers)
            taken = np.broadcast_to(mask, pointers.shape)
            found: Array = np.array(np.broadcast_to(np.asarray(other, NUMPY[dtype]), pointers.shape))
            if taken.any():
                got = self.memory.load(pointers[taken], stored)
                found[taken] = _from_bits(got) if dtype == "bf16" else got
            return found

        return read

    def _make_tensor_descriptor(self, op: ir.Operation) -> Callable[..., Any]:
        def make(_: Any, base: Any, rows: Any, columns: Any, stride: Any, one: Any) -> Any:
            if base % 16 or one != 1 or stride % 8:
                raise Fault("a descriptor of what is not aligned")
            return int(base), int(rows), int(columns), int(stride)

        return make

    def _descriptor_load(self, op: ir.Operation) -> Callable[..., Any]:
        read, (height, width) = self._load(op), tt.shape_of(op.results[0])

        def tile(env: Any, matrix: Any, row: Any, column: Any) -> Any:
            base, rows, columns, stride = matrix
            y, x = row + np.arange(height)[:, None], column + np.arange(width)[None, :]
            inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
            return read(env, base + 2 * (y.astype(np.int64) * stride + x), inside)

        return tile

    def _store(self, op: ir.Operation) -> Callable[..., Any]:
        dtype = _dtype(op.operands[1])

        def write(_: Any, pointers: Any, value: Any, mask: Any = True) -> None:
            pointers = np.asarray(pointers)
            taken = np.broadcast_to(mask, pointers.shape)
            if taken.any():
                values = np.broadcast_to(value, pointers.shape)[taken]
                self.memory.store(pointers[taken], _rounded_bits(values) if dtype == "bf16" else values)

        return write

    # -- tiles --------------------------------------------------------------------------------------------------------
    def _dot(self, op: ir.Operation) -> Callable[..., Any]:
        source, result = _dtype(op.operands[0]), NUMPY[_dtype(op.results[0])]
        rounds = source == "f32" and _integer(op, "inputPrecision") == 0

        def multiply(_: Any, a: Any, b: Any, c: Any) -> Any:
            if rounds:
                a, b = to_tf32(a), to_tf32(b)
            return (a.astype(result) @ b.astype(result) + c).astype(result)

        return multiply

    def _reduce(self, op: ir.Operation) -> Callable[..., Any]:
        axis, combine = _integer(op, "axis"), self.block(op.regions[0].blocks[0])

        def fold(env: dict[int, Any], *tiles: Any) -> Any:
            tiles = tuple(np.moveaxis(t, axis, 0) for t in tiles)
            while len(tiles[0]) > 1:
                half = len(tiles[0]) // 2
                tiles = tuple(combine([*(t[:half] for t in tiles), *(t[half:] for t in tiles)], env))
            return tiles[0][0] if len(tiles) == 1 else [t[0] for t in tiles]

        return fold

    def _for(self, op: ir.Operation) -> Callable[..., Any]:
        body = self.block(op.regions[0].blocks[0])

        def loop(env: dict[int, Any], low: Any, high: Any, step: Any, *carried: Any) -> Any:
            values: Values = list(carried)
            for i in range(int(low), int(high), int(step)):
                values = body([np.int32(i), *values], env)
            return values[0] if len(values) == 1 else values

        return loop


def _rounded_bits(x: Any) -> Array:
    """bf16 as memory holds it, of numbers in float32."""
    return (np.ascontiguousarray(to_bf16(x)).view(np.uint32) >> 16).astype(np.uint16)


def _from_bits(bits: Array) -> Array:
    found: Array = (bits.astype(np.uint32) << 16).view(np.float32)
    return found
