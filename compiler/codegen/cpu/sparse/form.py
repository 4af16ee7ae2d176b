"""Which contractions have a kernel for a sparse constant factor, and their parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from effc.compiler.codegen.cpu.contraction.roles import Nest, drop_units
from effc.compiler.codegen.cpu.contraction.roles import find as find_nest
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.ir.spec import KernelSpec


@dataclass(frozen=True)
class Form:
    """``nest``: the contraction, of one sum; the sparse factor has the columns. ``sparsity``: of the matrix ``[columns][sum]``.

    ``planes``: neighbouring rows of the dense factor are contiguous; otherwise neighbours of the sum are. ``by_columns``: neighbouring
    columns of the results are contiguous; otherwise neighbouring rows are.
    """

    nest: Nest
    sparsity: Sparsity
    planes: bool
    by_columns: bool

    @property
    def dtype(self) -> str:
        """Of both factors."""
        return self.nest.spec.operands[self.nest.right.operand].dtype

    @property
    def columns(self) -> int:
        return _known(self.nest.size(self.nest.column))

    @property
    def sum(self) -> int:
        return _known(self.nest.size(self.nest.reduction[0]))

    @property
    def step(self) -> Expr:
        """Elements between neighbours of the sum in the dense factor."""
        return self.nest.stride(self.nest.left.load, self.nest.reduction[0])

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
    if (
        nest.spec.body[nest.contract].dtype != "f32"
        or nest.borders
        or nest.wise
        or nest.batch
        or len(nest.reduction) != 1
    ):
        return "not a product of two matrices: a window, groups, or a border"
    assert nest.column is not None, "roles.find packs no factor without columns"
    (k,) = nest.reduction
    sizes = [nest.size(i).constant for i in (nest.column, k)]
    if None in sizes or 0 in sizes:
        return "the sizes of the sparse factor are not known numbers, or 0"
    steps = [nest.stride(nest.right.load, nest.column).constant, _step_of_sum(spec, nest.right.load)]
    if steps == [1, sizes[0]]:
        sparsity = sparsity.transposed
    elif steps != [sizes[1], 1]:
        return "the sparse factor is only a part of its tensor"
    if sparsity.columns > (sizes[1] or 0):
        return "a block is longer than the sum"
    stores = [i for i, instr in enumerate(nest.spec.body) if instr.op == "store"]

    def contiguous(dim: int | None, instrs: list[int]) -> bool:
        factors = [nest.address(i).coefficient(f"d{dim}") for i in instrs]
        return dim is not None and all(f is not None and f.constant == 1 for f in factors)

    planes = contiguous(nest.row, [nest.left.load])
    if not planes and not contiguous(k, [nest.left.load]):
        return "neither the rows nor the sum of the dense factor are contiguous"
    by_columns = contiguous(nest.column, stores)
    if not by_columns and not contiguous(nest.row, stores):
        return "neither the rows nor the columns of the result are contiguous"
    return Form(nest, sparsity, planes, by_columns)


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
