"""Who plays which part in a ``contraction`` spec: rows, columns and sums, found from the addresses.

A dimension that only the left value has is an M dimension, one that only the right value has is N, one that both have is batch,
and the reduction dimensions are K. The emitter wants less: one *row* dimension (register tile's height), one *column* dimension
(its width, the vectorised one), reduction dimensions, and *outer* dimensions that are plain loops. ``find`` makes these of the
spec: it drops dimensions of size 1, merges dimensions of one role that are contiguous in every address (1x1 convolutions and
batched linears become one GEMM), exchanges the operands where the *left* one is the better column side, and says by a ``str``
why a spec does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from effc.compiler.codegen.cpu.contraction.borders import Border, read
from effc.compiler.codegen.cpu.contraction.chains import chain_length, longest
from effc.compiler.codegen.cpu.contraction.sides import Side, read_side, split_groups, unfit_grains
from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.ir.spec import Dim, Instr, KernelSpec

#: Elements of half a vector of 512 bits of float32: a shorter dimension (a kernel's taps) makes a poor column.
_HALF = 8


@dataclass(frozen=True)
class Nest:
    """A contraction with its parts cast. ``spec`` is the merged spec: the indices of all other fields refer to it.

    ``left`` is read by rows (a scalar, broadcast), ``right`` by columns (vectors). ``row`` or ``column`` is None where the
    product has no such dimension. ``outer`` are the remaining parallel dimensions; ``batch`` those of them that ``right``
    depends on, in the order of its packed layout. ``wise``: there is no N dimension and ``column`` is a batch dimension, so
    ``left`` too is read by vectors (depthwise convolution). ``borders``: where ``left`` is zero. ``channels``: of each group, where
    columns are those of several (`grouped`), else 0. ``stacked``: how many taps of a channel a lane holds (`stacked`), else 0. ``lines``:
    how many of the first dimensions were kept apart (`find`).
    """

    spec: KernelSpec
    contract: int
    left: Side
    right: Side
    row: int | None
    column: int | None
    outer: tuple[int, ...]
    batch: tuple[int, ...]
    reduction: tuple[int, ...]
    wise: bool
    borders: tuple[Border, ...] = ()
    channels: int = 0
    stacked: int = 0
    lines: int = 0

    def address(self, instr: int) -> Expr:
        address = self.spec.body[instr]["address"]
        assert isinstance(address, Expr)
        return address

    def stride(self, instr: int, dim: int | None) -> Expr:
        """Elements between neighbours along ``dim`` in the address of ``instr`` (0 for no dim)."""
        found = const(0) if dim is None else self.address(instr).coefficient(f"d{dim}")
        assert found is not None, "roles.find admits only linear rows, columns and sums"
        return found

    @property
    def groups(self) -> int | None:
        """The sum along which scales or zero points of ``right`` differ: the outermost, or none."""
        addresses = [self.address(g.load) for g in self.right.grains]
        return self.reduction[0] if any(f"d{self.reduction[0]}" in a.variables() for a in addresses) else None

    def size(self, dim: int | None) -> Expr:
        return const(1) if dim is None else self.spec.dims[dim].size


def find(spec: KernelSpec, *, merge: bool = True, lines: int = 0) -> Nest | str:
    """The cast of ``spec``, or the reason why it has none; without ``merge`` every dim but those of size 1 stays by itself, and so do the
    first ``lines`` (none of them of size 1), which are then the outermost loops.
    """
    contracts = [i for i, instr in enumerate(spec.body) if instr.op == "contract"]
    if len(contracts) != 1:
        return f"a contraction holds one contract instruction, this one {len(contracts)}"
    at = contracts[0]
    split = split_groups(spec)
    if isinstance(split, str):
        return split
    spec = split
    sides = [read_side(spec, arg) for arg in spec.body[at].args]
    for side in sides:
        if isinstance(side, str):
            return side
    lhs, rhs = (s for s in sides if isinstance(s, Side))
    if lhs.packed and rhs.packed:
        return "both factors are packed"
    reason = _check_levels(spec, at, (lhs, rhs))
    if reason:
        return reason
    left, right = (rhs, lhs) if _exchange(spec, lhs, rhs) else (lhs, rhs)
    if left.quantized or (right.quantized and not right.packed):
        return "a quantized factor is read from packed panels only"
    spec = drop_units(spec)
    classes = _classes(spec, left, right)
    if merge:
        spec, classes = _merge(spec, classes, left, right, lines)
    return _cast(spec, at, left, right, classes, lines)


def factors(spec: KernelSpec) -> tuple[int, ...]:
    """The operands that the factors of the only ``contract`` are loaded from, where there is such a one and loads are all there is."""
    contracts = [instr for instr in spec.body if instr.op == "contract"]
    sides = [read_side(spec, arg) for arg in contracts[0].args] if len(contracts) == 1 else []
    return tuple(side.operand for side in sides if isinstance(side, Side))


# -- checking the body ------------------------------------------------------------------------------------------------
def _check_levels(spec: KernelSpec, at: int, sides: Sequence[Side]) -> str | None:
    """Everything but the factors must be at the parallel level: the sum is the only thing inside the reduction."""
    parallel = sum(d.kind == "parallel" for d in spec.dims)
    kinds = [d.kind for d in spec.dims]
    if kinds != sorted(kinds):
        return "a reduction dimension stands before a parallel one"
    inside = {i for side in sides for i in side.inside}
    masking = _with_arguments(spec.body, [i for side in sides for i in spec.body[side.load].args])
    for i, (instr, level) in enumerate(zip(spec.body, spec.levels(), strict=True)):
        if i in inside:
            if any(i in other.args for j, other in enumerate(spec.body) if j not in inside and j != at):
                return f"v{i}, a factor of contract, is used elsewhere too"
        elif level > parallel and i not in masking:
            return f"{instr.op} (v{i}) runs inside the reduction"
        elif instr.op == "reduce":
            return "a reduce beside the contract"
        elif instr.op == "store" and not depends(spec.body, i, at):
            return "a store of a value that does not come from the contract"
    return None


def _with_arguments(body: Sequence[Instr], values: Sequence[int]) -> set[int]:
    """``values`` and all that they are computed from."""
    found, pending = set[int](), list(values)
    while pending:
        value = pending.pop()
        if value not in found:
            found.add(value)
            pending += body[value].args
    return found


def depends(body: Sequence[Instr], value: int, source: int) -> bool:
    """Whether ``value`` is ``source``, or computed from it."""
    return source in _with_arguments(body, [value])


def _has(address: Expr, dim: int) -> bool:
    return f"d{dim}" in address.variables()


def _exchange(spec: KernelSpec, lhs: Side, rhs: Side) -> bool:
    """Whether ``lhs`` should be the column side: where it is packed, else where its own dimension is contiguous in the output."""
    if lhs.packed or rhs.packed:
        return lhs.packed
    store = next(i for i in spec.body if i.op == "store")["address"]
    a, b = spec.body[lhs.load]["address"], spec.body[rhs.load]["address"]

    names = [f"d{i}" for i in _wide(spec, [i for i, d in enumerate(spec.dims) if d.kind == "parallel"])]

    def unit(address: Expr, name: str) -> bool:
        factor = address.coefficient(name)
        return factor is not None and factor.constant == 1

    def score(mine: Expr, other: Expr) -> int:
        """2: the column would be contiguous in output and factor; 1: in the output; 0: not; -1: there is none."""
        own = [d for d in names if d in mine.variables() and d not in other.variables()]
        return max((unit(store, d) + (unit(store, d) and unit(mine, d)) for d in own), default=-1)

    both = [d for d in names if unit(a, d) and unit(b, d)]
    if both and not any(d in a.variables() ^ b.variables() for d in names):
        return not _own(spec, a, b) and bool(_own(spec, b, a))  # taps by channels: lanes along the channels
    if any(unit(store, d) and unit(a, d) for d in names if d in b.variables()):
        return score(a, b) > max(score(b, a), 0)  # the contiguous dimension is one of both factors (depthwise)
    return score(a, b) > score(b, a)


def _own(spec: KernelSpec, mine: Expr, other: Expr) -> list[int]:
    """Parallel dimensions of more than one element that ``mine`` has and ``other`` has not."""
    parallel = [i for i, d in enumerate(spec.dims) if d.kind == "parallel" and d.size.constant != 1]
    return [i for i in parallel if _has(mine, i) and not _has(other, i)]


# -- dimensions -----------------------------------------------------------------------------------------------------
def rename(spec: KernelSpec, keep: Sequence[int], values: dict[str, Expr], dims: Sequence[Dim]) -> KernelSpec:
    """The spec over the dimensions ``keep`` only (sizes from ``dims``), all others replaced by ``values``."""
    mapping = dict(values)
    for new, old in enumerate(keep):
        mapping[f"d{old}"] = var(f"d{new}")

    def rewrite(value: object) -> object:
        return value.substitute(mapping) if isinstance(value, Expr) else value

    body = tuple(Instr(i.op, i.args, i.dtype, tuple((k, rewrite(v)) for k, v in i.attributes)) for i in spec.body)
    return KernelSpec(spec.template, tuple(dims), spec.operands, body, spec.symbols, spec.attributes, spec.schedule)


def drop_units(spec: KernelSpec) -> KernelSpec:
    """``spec`` without its dimensions of size 1."""
    keep = [i for i, d in enumerate(spec.dims) if d.size.constant != 1]
    if len(keep) == len(spec.dims):
        return spec
    gone = {f"d{i}": const(0) for i in range(len(spec.dims)) if i not in keep}
    return rename(spec, keep, gone, [spec.dims[i] for i in keep])


def _classes(spec: KernelSpec, left: Side, right: Side) -> list[list[int]]:
    """Dimensions by role: M (or in neither factor), N, batch, K."""
    a, b = spec.body[left.load]["address"], spec.body[right.load]["address"]
    roles: list[list[int]] = [[], [], [], []]
    for i, dim in enumerate(spec.dims):
        if dim.kind == "reduction":
            roles[3].append(i)
        elif _has(b, i):
            roles[2 if _has(a, i) else 1].append(i)
        else:
            roles[0].append(i)
    return roles


def _merge(
    spec: KernelSpec, classes: list[list[int]], left: Side, right: Side, lines: int
) -> tuple[KernelSpec, list[list[int]]]:
    """Merge neighbours of one role that every address walks as one dimension; a packed factor is flat in K by its layout."""
    for role, members in enumerate(classes):
        for outer, inner in pairwise(i for i in members if i >= lines):
            if _mergeable(spec, outer, inner, right.load if right.packed and role == 3 else None):
                dims = list(spec.dims)
                dims[inner] = Dim(dims[outer].size * dims[inner].size, dims[inner].kind)
                keep = [i for i in range(len(dims)) if i != outer]
                merged = rename(spec, keep, {f"d{outer}": const(0)}, [dims[i] for i in keep])
                shifted = [[i - (i > outer) for i in c if i != outer] for c in classes]
                return _merge(merged, shifted, left, right, lines)
    return spec, classes


def _mergeable(spec: KernelSpec, outer: int, inner: int, exempt: int | None) -> bool:
    size = spec.dims[inner].size
    for i, instr in enumerate(spec.body):
        for _, value in instr.attributes:
            if not isinstance(value, Expr) or i == exempt:
                continue
            a, b = value.coefficient(f"d{outer}"), value.coefficient(f"d{inner}")
            if a is None or b is None or a != b * size:
                return False
    return True


def _linear(address: Expr, dim: int) -> bool:
    """Whether the address is affine in the dimension with a factor that no dimension changes."""
    factor = address.coefficient(f"d{dim}")
    return factor is not None and not any(v[0] == "d" for v in factor.variables())


def _cast(spec: KernelSpec, at: int, left: Side, right: Side, classes: list[list[int]], lines: int) -> Nest | str:
    m, n, batch, k = classes
    if not {*range(lines)} <= {*m, *n, *batch}:
        return "a line of the result is not one of rows of the left factor, nor of a part of the columns"
    a, b = spec.body[left.load]["address"], spec.body[right.load]["address"]
    for dim in k:
        if not _linear(a, dim) or not (right.packed or _linear(b, dim)):
            return f"an address is not linear in the reduction dimension d{dim}"
    stores = [i["address"] for i in spec.body if i.op == "store"]

    def contiguous(dim: int, addresses: Sequence[Expr]) -> bool:
        return all((c := e.coefficient(f"d{dim}")) is not None and c.constant == 1 for e in addresses)

    column: int | None = None
    wise = False
    columns = _wide(spec, [i for i in n if i >= lines and (right.packed or _linear(b, i))])
    if columns:
        first = [i for i in columns if contiguous(i, stores)]
        second = [i for i in columns if not right.packed and contiguous(i, [b])]
        column = (first or second or columns)[-1]
    elif not n:
        shared = [i for i in batch if i >= lines and contiguous(i, [a, *stores]) and (right.packed or _linear(b, i))]
        shared = shared or [i for i in _wide(spec, batch) if contiguous(i, [a, b])]
        if shared:
            column, wise = shared[-1], True
    if column is None and right.packed:
        return "a factor without columns (N = 1) is read in place, not packed"
    row = _row(spec, [i for i in m if _linear(a, i) and i >= lines])
    batches = tuple(i for i in (*batch, *n) if i != column)
    outer = (*range(lines), *(i for i in (*batches, *m) if i != row and i >= lines))
    if any(v[0] == "v" and v[1:].isdigit() for e in (a, b) for v in e.variables()):
        return "a factor is gathered by a computed index"
    borders: tuple[Border, ...] | str = ()
    if left.masks and (wise or (right.packed and not _paired(spec, right))):
        borders = read(spec, left.masks, row, column, k, longest(chain_length(right.packed)))
    if isinstance(borders, str):
        return borders
    if right.quantized and (wise or borders or not k or spec.body[at].dtype != "f32"):
        return "quantized codes that are not summed in f32, of which only one makes a sum, or under a border"
    reason = unfit_grains(spec, right, [*batches, *([] if column is None else [column])], k)
    if reason:
        return reason
    if len(borders) < len(left.masks) + len(right.masks):
        return "a border around a factor that is neither read by vectors of channels nor multiplied, one by one, with a packed one"
    return Nest(spec, at, left, right, row, column, outer, batches, tuple(k), wise, borders, lines=lines)


def _paired(spec: KernelSpec, right: Side) -> bool:
    """Whether two neighbours of the innermost sum, of which one may lie outside, are one step."""
    return spec.operands[right.operand].dtype == "bf16"


def _wide(spec: KernelSpec, dims: Sequence[int]) -> list[int]:
    """Those of ``dims`` that fill half a vector (unknown sizes do), or those of more than one element where none does."""
    sizes = {i: spec.dims[i].size.constant or _HALF for i in dims}
    return [i for i in dims if sizes[i] >= _HALF] or [i for i in dims if sizes[i] > 1]


def _row(spec: KernelSpec, candidates: Sequence[int]) -> int | None:
    """The last dimension that fills a register tile of 8 rows (unknown sizes do), else the longest."""
    best: tuple[int, int] | None = None
    for i in candidates:
        size = spec.dims[i].size.constant
        best = max(best or (0, 0), (8 if size is None else min(size, 8), i))
    return best[1] if best else None
