"""A kernel seen as a product of matrices: how many rows, columns, sums and batches, and which operands are its factors.

A dimension that only the left factor has counts as rows, one that only the right one has as columns, one that both have as a batch; what is
summed is the reduction dimensions. The packed factor is the right one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import ITEM_SIZE, Instr, KernelSpec
from effc.costmodel.features.borders import Border
from effc.costmodel.features.moves import steps
from effc.costmodel.features.scale import NAN

COLUMNS: tuple[str, ...] = (
    *("log_rows", "log_columns", "log_sums", "log_batches"),
    *("window", "depthwise", "left_item", "right_item", "quantized", "right_packed", "masked"),
    *("stored_share", "block_elements"),
    *("log_tall", "log_lines", "columns_inner", "rows_crowded", "sums_crowded", "unaligned"),
    *("inside", "split", "log_pages"),
)

#: Bytes: addresses that are multiples of it apart share a set of L1.
_PAGE = 4096
#: Bytes of a cache line.
_LINE = 64
#: Bytes of a factor whose products' rounding errors show in a long sum.
_SINGLE = 4
#: Rows that fill a register tile.
_FULL = 8


@dataclass(frozen=True)
class Sizes:
    """``window``: whether an address takes steps of rows and sums together, as a convolution's does; ``items``: bytes of an element of
    the left and of the right factor; ``right``: number of the operand, -1 where there is no product; ``stored``: share of the right
    one's elements that may differ from zero, ``block``: elements of a block of them, in ``block_rows`` columns; ``stage``: number of the
    block's stage that this is. ``tall``: rows that register tiles divide, a line of them; ``inner``: whether neighbours in a row of the
    right factor are neighbours in memory; ``crowded``: whether rows of the left one, and steps of the sum in the right one, lie whole
    pages apart. ``further``: channels of an attention's values. ``taps``: of the innermost sum, and ``stride``: of how many of them rows
    are apart in the left factor, 0 where rows share none; ``unaligned``: whether rows of the left factor begin at other places of a cache
    line, ``split``: whether steps of the sum in the right one do; ``summed``: sizes of the summed dimensions, of which the
    templates make one of those that lie behind each other; ``cut``: whether a long sum is cut into chains. ``border``: of the left one.
    ``squares``: of 2x2 rows, along their two innermost dimensions; ``factors``: dtypes of the left and right one in
    memory; ``pages``: sums that lie in pages of their own in the left one.
    """

    rows: int
    columns: int
    sums: int
    batches: int
    window: bool
    items: tuple[int, int]
    right: int
    packed: bool
    quantized: bool
    masked: bool
    stored: float
    block: int
    tall: int
    inner: bool = True
    crowded: tuple[bool, bool] = (False, False)
    further: int = 0
    taps: int = 1
    stride: int = 0
    unaligned: bool = False
    split: bool = False
    summed: tuple[int, ...] = ()
    cut: bool = False
    border: Border = Border()
    block_rows: int = 1
    stage: int = 0
    squares: int = 1
    factors: tuple[str, ...] = ()
    pages: int = 1

    @staticmethod
    def of(spec: KernelSpec, values: Mapping[str, int]) -> Sizes:
        """Of a block those of the stage with the most multiply-adds; where there is no product, points are rows and columns."""
        if spec.stages:
            each = [replace(Sizes.of(stage, values), stage=i) for i, stage in enumerate(spec.stages)]
            return max(each, key=lambda s: s.points)
        sizes = [d.size.evaluate(values) for d in spec.dims]
        if spec.template == "attention":
            batch, heads, queries, keys, channels, further = sizes
            item = ITEM_SIZE[spec.operands[0].dtype]
            masked = spec.get("mask") is not None or bool(spec.get("causal"))
            heads *= batch
            return Sizes(
                queries,
                keys,
                channels,
                heads,
                False,
                (item, item),
                -1,
                False,
                False,
                masked,
                1.0,
                1,
                queries,
                further=further,
            )
        product = next((i for i in spec.body if i.op == "contract"), None)
        if product is None:
            return _without_product(spec, sizes)
        left, right = (_factor(spec, arg) for arg in product.args)
        parallel = [i for i, d in enumerate(spec.dims) if d.kind == "parallel"]
        reduced = [i for i, d in enumerate(spec.dims) if d.kind != "parallel"]
        walks = [dict(steps(e, values)) for i in spec.body for _, e in i.attributes if isinstance(e, Expr)]
        in_left, in_right = (dict(steps(side["address"], values)) for side in (left, right))
        stored = dict(steps(next(i for i in spec.body if i.op == "store")["address"], values))
        if spec.operands[left["operand"]].role == "packed" or (
            spec.operands[right["operand"]].role != "packed" and _exchanged(in_left, in_right, stored)
        ):
            left, right, in_left, in_right = right, left, in_right, in_left
        rows = [i for i in parallel if f"d{i}" in in_left and f"d{i}" not in in_right]
        columns = [i for i in parallel if f"d{i}" in in_right and f"d{i}" not in in_left]
        batches = [i for i in parallel if f"d{i}" in in_left and f"d{i}" in in_right]
        operand = spec.operands[right["operand"]]
        items = ITEM_SIZE[spec.operands[left["operand"]].dtype], ITEM_SIZE[operand.dtype]
        sums = prod(sizes[i] for i in reduced)
        sparse = operand.sparsity
        whole = max(prod(sizes[i] for i in (*columns, *batches)) * sums, 1)
        tall, across = _tall(rows, sizes, walks)
        deepest = next((i for i in reversed(reduced) if sizes[i] > 1), -1)
        return Sizes(
            rows=prod(sizes[i] for i in rows),
            columns=prod(sizes[i] for i in columns),
            sums=sums,
            batches=prod(sizes[i] for i in batches),
            window=any(f"d{i}" in in_left and _shares_steps(in_left, i, parallel) for i in reduced),
            items=items,
            right=right["operand"],
            packed=operand.role == "packed",
            quantized=operand.dtype == "i8",
            masked=bool(left.args),
            stored=min(1.0, sparse.elements / whole) if sparse else 1.0,
            block=sparse.rows * sparse.columns if sparse else 1,
            block_rows=sparse.rows if sparse else 1,
            tall=tall,
            inner=operand.role == "packed" or any(in_right.get(f"d{i}") == 1 for i in (*columns, *batches)),
            taps=sizes[deepest] if deepest >= 0 else 1,
            stride=_stride(in_left.get(f"d{across}", 0), in_left.get(f"d{deepest}", 0)),
            unaligned=in_left.get(f"d{across}", 0) * items[0] % _LINE != 0,
            split=operand.role != "packed" and in_right.get(f"d{deepest}", 0) * items[1] % _LINE != 0,
            summed=_merged(reduced, sizes, [w for w in walks if operand.role != "packed" or w != in_right]),
            cut=max(items) >= _SINGLE and product.dtype[0] == "f",
            border=Border.of(spec, left, sizes, values, across),
            pages=prod(sizes[i] for i in reduced if in_left.get(f"d{i}", 0) * items[0] >= _PAGE),
            factors=(spec.operands[left["operand"]].dtype, operand.dtype),
            squares=prod([*(sizes[i] for i in rows[:-2]), *(-(-sizes[i] // 2) for i in rows[-2:])]),
            crowded=(
                _pages(in_left.get(f"d{across}", 0) * items[0]),
                operand.role != "packed" and _pages(in_right.get(f"d{deepest}", 0) * items[1]),
            ),
        )

    @property
    def points(self) -> int:
        return self.rows * self.columns * self.sums * self.batches

    def row(self) -> list[float]:
        """In the order of `COLUMNS`."""
        product = bool(self.items[1])
        return [
            *(float(n) for n in (self.rows, self.columns, self.sums, self.batches)),
            float(self.window),
            float(product and self.columns == 1 and self.batches > 1),
            float(self.items[0]),
            float(self.items[1]) if product else NAN,
            float(self.quantized),
            float(self.packed),
            float(self.masked),
            self.stored,
            float(self.block),
            float(self.tall),
            float(self.rows // max(self.tall, 1)),
            float(self.inner),
            *map(float, self.crowded),
            float(self.unaligned),
            self.border.inside,
            float(self.split),
            float(self.pages),
        ]


def _without_product(spec: KernelSpec, sizes: list[int]) -> Sizes:
    parallel = [size for size, d in zip(sizes, spec.dims, strict=True) if d.kind == "parallel"]
    sums = prod(size for size, d in zip(sizes, spec.dims, strict=True) if d.kind != "parallel")
    columns = parallel[-1] if parallel else 1
    item = ITEM_SIZE[spec.operands[0].dtype] if spec.operands else 0
    masked = any(i.op == "load" and i.args for i in spec.body)
    rows = prod(parallel[:-1])
    return Sizes(rows, columns, sums, 1, False, (item, 0), -1, False, False, masked, 1.0, 1, rows)


def _factor(spec: KernelSpec, value: int) -> Instr:
    """The load behind a factor: through conversions, and of codes through their scale and zero point, the first argument of each."""
    instr = spec.body[value]
    while instr.op != "load":
        instr = spec.body[next(a for a in instr.args if _loads(spec, a))]
    return instr


def _loads(spec: KernelSpec, value: int) -> bool:
    instr = spec.body[value]
    return instr.op == "load" or any(_loads(spec, a) for a in instr.args)


def _exchanged(left: Mapping[str, int], right: Mapping[str, int], stored: Mapping[str, int]) -> bool:
    """Whether columns are those of the left factor, because its neighbours, and not the right one's, are neighbours in the result."""
    own = [any(stored.get(d) == 1 for d in mine if d not in other) for mine, other in ((left, right), (right, left))]
    return own[0] and not own[1]


def _tall(rows: list[int], sizes: list[int], walks: list[dict[str, int]]) -> tuple[int, int]:
    """The longest line of rows that lie at one distance from each other in every operand, and the number of its innermost dimension."""
    lines: list[tuple[int, int]] = []
    for dim in rows:
        size = sizes[dim]
        if size == 1:
            continue
        if lines and all(w.get(f"d{lines[-1][1]}", 0) == w.get(f"d{dim}", 0) * size for w in walks):
            lines[-1] = lines[-1][0] * size, dim
        else:
            lines.append((size, dim))
    return max(lines, key=lambda line: (min(line[0], _FULL), line[1]), default=(1, -1))


def _merged(reduced: Sequence[int], sizes: Sequence[int], walks: Sequence[Mapping[str, int]]) -> tuple[int, ...]:
    """Sizes of the summed dimensions, outermost first, where all that walks along two of them as along one has made them one."""
    found: list[tuple[int, int]] = []
    for dim in (d for d in reversed(reduced) if sizes[d] > 1):
        size, inner = found[-1] if found else (0, -1)
        if found and all(w.get(f"d{dim}", 0) == w.get(f"d{inner}", 0) * size for w in walks):
            found[-1] = size * sizes[dim], inner
        else:
            found.append((sizes[dim], dim))
    return tuple(size for size, _ in reversed(found))


def _stride(row: int, tap: int) -> int:
    return row // tap if tap and row % tap == 0 else 0


def _pages(distance: int) -> bool:
    return distance > 0 and distance % _PAGE == 0


def _shares_steps(step: Mapping[str, int], dim: int, parallel: list[int]) -> bool:
    """Whether a parallel dimension moves by a multiple of a summed one's step, or by less than the summed one reaches: taps of a window.

    Of a matrix the rows' step is a multiple of the sums' too; a window's is not as long as its row.
    """
    own = step.get(f"d{dim}", 0)
    return own > 0 and any(step.get(f"d{p}", 0) in (own, 2 * own) for p in parallel)
