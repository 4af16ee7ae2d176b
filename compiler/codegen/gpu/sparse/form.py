"""A product with a sparse constant matrix, read: which factor it is, how it lies, and which dims it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.codegen.canonical import simplify
from effc.compiler.codegen.gpu.body import flat_size
from effc.compiler.codegen.gpu.contraction.roles import dependences, needed, peeled
from effc.compiler.codegen.gpu.ops import known
from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.ir.spec import KernelSpec

_FLOATS = frozenset({"f32", "bf16", "f16"})


@dataclass(frozen=True)
class Form:
    """``spec`` simplified, whose ``contract`` multiplies ``factor`` (a value, in ``dtype``) with the matrix [``column``, ``sums``] in
    operand ``weight``; ``rows``: the other parallel dims. All dims are numbers of ``spec``'s.
    """

    spec: KernelSpec
    contract: int
    factor: int
    dtype: str
    weight: int
    rows: tuple[int, ...]
    column: int
    sums: tuple[int, ...]

    @property
    def sparsity(self) -> Sparsity:
        found = self.spec.operands[self.weight].sparsity
        assert found is not None, "the weight is sparse"
        return found

    @property
    def length(self) -> int:
        """Elements of the sum."""
        return _constant(flat_size(self.spec, self.sums))

    @property
    def columns(self) -> int:
        return _constant(self.spec.dims[self.column].size)

    @property
    def lists(self) -> int:
        """Rows of blocks."""
        return -(-self.columns // self.sparsity.rows)


def find(spec: KernelSpec) -> Form | str:
    """The form, or the reason why no kernel leaves out the zeros that the operands of ``spec`` are known to hold."""
    spec = simplify(spec)
    body = spec.body
    contracts = [i for i, instr in enumerate(body) if instr.op == "contract"]
    sparse = [i for i, o in enumerate(spec.operands) if o.sparsity is not None]
    if len(contracts) != 1 or len(sparse) != 1 or any(i.op == "reduce" for i in body):
        return "it is no single product with one sparse matrix"
    if any(i.op not in ("load", "store", "index", "check", "contract") and not known(i.op) for i in body):
        return "a part of it has no form on the GPU"
    (at,), (weight,) = contracts, sparse
    values = [peeled(spec, a) for a in body[at].args]
    loads = [v for v in values if body[v].op == "load" and body[v]["operand"] == weight and not body[v].args]
    if body[at].dtype != "f32" or len(loads) != 1 or any(i["operand"] == weight for i in body if i.op == "load") > 1:
        return "the sparse matrix is no factor as it lies"
    (load,) = loads
    factor = next(v for v in values if v != load)
    dtypes = {body[v].dtype for v in values}
    if len(dtypes) != 1 or not dtypes <= _FLOATS:
        return f"it is a product of {' and '.join(sorted(dtypes))}"
    if load in needed(spec, [factor]):
        return "the other factor reads the matrix too"
    parallel = [i for i, d in enumerate(spec.dims) if d.kind == "parallel"]
    depends = dependences(spec)
    columns = [i for i in parallel if i in depends[load]]
    if len(columns) != 1 or columns[0] in depends[factor]:
        return "the rows of the matrix are no columns of the product"
    levels = spec.levels()
    if any(body[i].op in ("store", "check") and levels[i] > len(parallel) for i in range(len(body))):
        return "something is stored or checked at every point of the sum"
    sums = _sums(spec, body[load]["address"], columns[0])
    if isinstance(sums, str):
        return sums
    rows = tuple(i for i in parallel if i != columns[0])
    return Form(spec, at, factor, dtypes.pop(), weight, rows, columns[0], sums)


def _sums(spec: KernelSpec, address: Expr, column: int) -> tuple[int, ...] | str:
    """The dims of the sum in the order in which the matrix holds them, row-major from its first element on."""
    dims = [i for i, d in enumerate(spec.dims) if d.kind == "reduction"]
    steps = {i: address.coefficient(f"d{i}") for i in dims}
    if any(s is None or s.constant is None for s in steps.values()):
        return "the matrix is not read in steps"
    order = sorted(dims, key=lambda i: -_constant(steps[i] or const(0)))
    if any(spec.dims[i].size.constant is None for i in (*order, column)):
        return "the matrix has no known size"
    return tuple(order) if address == _row_major(spec, (column, *order)) else "the matrix does not lie row-major"


def _row_major(spec: KernelSpec, dims: Sequence[int]) -> Expr:
    total = const(0)
    for dim in dims:
        total = total * spec.dims[dim].size + var(f"d{dim}")
    return total


def _constant(e: Expr) -> int:
    assert e.constant is not None, "it is known"
    return e.constant
