"""Which contractions have a kernel for a sparse constant factor, and their parts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from itertools import product as every
from math import prod

from effc.compiler.codegen.cpu.contraction.roles import Nest, drop_units
from effc.compiler.codegen.cpu.contraction.roles import find as find_nest
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr, product
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.ir.spec import KernelSpec

#: Elements of a cache line, and sets of the first-level cache.
LINE, SETS = 16, 64


@dataclass(frozen=True)
class Form:
    """``nest``: the contraction; the sparse factor has the columns. ``sparsity``: of the matrix ``[columns][sum]``.

    ``planes``: neighbouring rows of the dense factor are contiguous; otherwise neighbours of the sum are. ``by_columns``: neighbouring
    columns of the results are contiguous; otherwise neighbouring rows are. ``positions``: the sums over a convolution's window, outermost
    first; that over its channels is ``channel``, and no sum is merged with another. ``strides``: of the sparse factor's tensor, along the
    columns, the positions and the channels.
    """

    nest: Nest
    sparsity: Sparsity
    planes: bool
    by_columns: bool
    channel: int
    strides: tuple[int, ...]
    positions: tuple[int, ...] = ()

    @property
    def dtype(self) -> str:
        """Of both factors."""
        return self.nest.spec.operands[self.nest.right.operand].dtype

    @property
    def columns(self) -> int:
        return _known(self.nest.size(self.nest.column))

    @property
    def sum(self) -> int:
        return prod(_known(self.nest.size(k)) for k in self.nest.reduction)

    @property
    def step(self) -> Expr:
        """Elements between neighbouring channels in the dense factor."""
        return self.nest.stride(self.nest.left.load, self.channel)

    @property
    def taps(self) -> tuple[int, ...]:
        """Elements from the first position of the window to each in the dense factor, row-major; 0 where there is no window."""
        steps = [(_known(self.nest.size(k)), _known(self.nest.stride(self.nest.left.load, k))) for k in self.positions]
        return tuple(sum(at) for at in every(*(range(0, size * step, step) for size, step in steps)))

    def met(self, rows: int) -> tuple[int, int]:
        """Elements of the dense factor that so many neighbouring rows meet (windows overlap), and how many of its cache lines, of a few
        channels, fall into one set of the first-level cache.
        """
        step = self.nest.stride(self.nest.left.load, self.nest.row).constant
        if step is None:
            return rows * self.sum, 1
        starts = {i * step + tap for i in range(rows) for tap in self.taps}
        sets = Counter(line % SETS for line in {start // LINE for start in starts})
        return self.sizes[-1] * len(starts), max(sets.values())

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the sparse factor's tensor, as ``strides``."""
        nest = self.nest
        return tuple(_known(nest.size(i)) for i in (nest.column, *self.positions, self.channel))

    @property
    def outer(self) -> Expr:
        """Of how many products it is made: indices of the dims outside."""
        return product([self.nest.size(i) for i in self.nest.outer])

    @property
    def rows(self) -> Expr:
        return self.nest.size(self.nest.row)

    @property
    def blocks(self) -> int:
        """Rows of blocks: the columns in groups."""
        return -(-self.columns // self.sparsity.rows)


def find(spec: KernelSpec, target: Target) -> Form | str:
    """The parts of ``spec``, whose constant factor is packed, or the reason why no sparse kernel serves."""
    nest = find_nest(spec)
    if isinstance(nest, str):
        return nest
    sparsity = spec.operands[nest.right.operand].sparsity
    if not nest.right.packed or sparsity is None:
        return "no constant factor is known to hold zeros"
    if target.vector_bytes < 32:
        return "it needs fused multiply-adds"
    if not _fits(nest, "f32") and not (sparsity.m and _fits(nest, "bf16")):
        return "only float32" if not sparsity.m else "only float32 and bfloat16"
    if nest.spec.body[nest.contract].dtype != "f32" or nest.borders or nest.wise or nest.batch or not nest.reduction:
        return "neither a product of two matrices nor a convolution: groups, or a border"
    assert nest.column is not None, "roles.find packs no factor without columns"
    merged = len(nest.reduction) == 1 and _step_of_sum(spec, nest.right.load) is not None
    found = _matrices(spec, nest, sparsity) if merged else _window(spec, sparsity)
    if isinstance(found, str):
        return found
    stores = [i for i, instr in enumerate(found.nest.spec.body) if instr.op == "store"]
    by_columns = _contiguous(found.nest, found.nest.column, stores)
    if not by_columns and (found.positions or not _contiguous(found.nest, found.nest.row, stores)):
        return "neither the rows nor the columns of the result are contiguous"
    return replace(found, by_columns=by_columns)


def _matrices(spec: KernelSpec, nest: Nest, sparsity: Sparsity) -> Form | str:
    """The form of a product of two matrices; what is said of the result is not looked at yet."""
    (k,) = nest.reduction
    sizes = [nest.size(i).constant for i in (nest.column, k)]
    if None in sizes or 0 in sizes:
        return "the sizes of the sparse factor are not known numbers, or 0"
    strides = (nest.stride(nest.right.load, nest.column).constant or 0, _step_of_sum(spec, nest.right.load) or 0)
    if strides == (1, sizes[0]):
        sparsity = sparsity.transposed
    elif strides != (sizes[1], 1):
        return "the sparse factor is only a part of its tensor"
    if sparsity.columns > (sizes[1] or 0):
        return "a block is longer than the sum"
    planes = _contiguous(nest, nest.row, [nest.left.load])
    if not planes and not _contiguous(nest, k, [nest.left.load]):
        return "neither the rows nor the sum of the dense factor are contiguous"
    return Form(nest, sparsity, planes, by_columns=True, channel=k, strides=strides)


def _window(spec: KernelSpec, sparsity: Sparsity) -> Form | str:
    """The form of a convolution, one of whose sums is contiguous in the input: that is taken for its channels."""
    nest = find_nest(spec, merge=False)
    assert isinstance(nest, Nest), "it has a merged nest"
    *positions, channel = sorted(nest.reduction, key=lambda k: _contiguous(nest, k, [nest.left.load]))
    if not _contiguous(nest, channel, [nest.left.load]):
        return "the channels of a convolution's input are not contiguous"
    sums = [*positions, channel]
    sizes = [nest.size(i).constant or 0 for i in (nest.column, *sums)]
    strides = tuple(nest.stride(nest.right.load, i).constant or 0 for i in (nest.column, *sums))
    reach = [nest.stride(nest.left.load, k).constant for k in positions]
    if 0 in sizes or None in reach:
        return "the sizes or strides of a convolution are not known numbers, or 0"
    if not _dense(list(zip(strides, sizes, strict=True)), strides[0]):
        return "the sparse factor is only a part of its tensor"
    if sparsity.columns > 1 and (strides[-1] != 1 or sizes[-1] % sparsity.columns):
        return "blocks do not lie along the channels, or do not divide them"
    return Form(nest, sparsity, False, True, channel, strides, tuple(positions))


def _contiguous(nest: Nest, dim: int | None, instrs: list[int]) -> bool:
    """Whether neighbours along ``dim`` are neighbours in memory for all of ``instrs``."""
    factors = [nest.address(i).coefficient(f"d{dim}") for i in instrs]
    return dim is not None and all(f is not None and f.constant == 1 for f in factors)


def _dense(dims: list[tuple[int, int]], slowest: int) -> bool:
    """Whether dims of ``(step, size)`` fill memory without a gap, in any order but for the outermost, which steps by ``slowest``."""
    expected = 1
    for step, size in sorted(dims):
        if step != expected:
            return False
        expected *= size
    return slowest == max(step for step, _ in dims)


def _fits(nest: Nest, dtype: str) -> bool:
    """Whether the product is one of two plain factors of ``dtype``, which at most become float32."""
    sides, body = (nest.left, nest.right), nest.spec.body
    if nest.right.quantized or any(nest.spec.operands[s.operand].dtype != dtype for s in sides):
        return False
    return all(dtype != "f32" and body[i].op == "arith.extf" for s in sides for i in s.chain)


def _step_of_sum(spec: KernelSpec, load: int) -> int | None:
    """Elements between neighbours of the sum in the packed factor's tensor: the nest has merged sums whatever these are. None: they lie
    at no one distance.
    """
    plain = drop_units(spec)
    address = plain.body[load]["address"]
    sums = [(address.coefficient(f"d{i}"), d.size) for i, d in enumerate(plain.dims) if d.kind == "reduction"]
    for (outer, _), (inner, size) in pairwise(sums):
        if outer is None or inner is None or outer != inner * size:
            return None
    return sums[-1][0].constant if sums and sums[-1][0] is not None else None


def with_rows_as_lanes(nest: Nest) -> Nest:
    """The nest whose epilogue takes vectors of rows."""
    return replace(nest, row=nest.column, column=nest.row)


def _known(size: Expr) -> int:
    assert size.constant is not None, "find admits known sizes only"
    return size.constant
