"""A kernel seen as a product of matrices: how many rows, columns, sums and batches, and which operands are its factors.

A dimension that only the left factor has counts as rows, one that only the right one has as columns, one that both have as a batch; what is
summed is the reduction dimensions. The packed factor is the right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from effc.compiler.ir.spec import ITEM_SIZE, Instr, KernelSpec
from effc.costmodel.features.scale import NAN
from effc.costmodel.features.work import steps

COLUMNS: tuple[str, ...] = (
    *("log_rows", "log_columns", "log_sums", "log_batches"),
    *("window", "depthwise", "left_item", "right_item", "quantized", "right_packed", "masked"),
    *("stored_share", "block_elements"),
)


@dataclass(frozen=True)
class Sizes:
    """``window``: whether an address takes steps of rows and sums together, as a convolution's does; ``items``: bytes of an element of
    the left and of the right factor; ``right``: number of the operand, -1 where there is no product; ``stored``: share of the right
    one's elements that may differ from zero, ``block``: elements of a block of them; ``stage``: number of the block's stage that this is.
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
    stage: int = 0

    @staticmethod
    def of(spec: KernelSpec, values: Mapping[str, int]) -> Sizes:
        """Of a block those of the stage with the most multiply-adds; where there is no product, points are rows and columns."""
        if spec.stages:
            each = [replace(Sizes.of(stage, values), stage=i) for i, stage in enumerate(spec.stages)]
            return max(each, key=lambda s: s.points)
        sizes = [d.size.evaluate(values) for d in spec.dims]
        if spec.template == "attention":
            batch, heads, queries, keys, channels, _ = sizes
            item = ITEM_SIZE[spec.operands[0].dtype]
            masked = spec.get("mask") is not None or bool(spec.get("causal"))
            return Sizes(queries, keys, channels, batch * heads, False, (item, item), -1, False, False, masked, 1.0, 1)
        product = next((i for i in spec.body if i.op == "contract"), None)
        if product is None:
            return _without_product(spec, sizes)
        left, right = (_factor(spec, arg) for arg in product.args)
        if spec.operands[left["operand"]].role == "packed":
            left, right = right, left
        in_left, in_right = _dims(left, values), _dims(right, values)
        parallel = [i for i, d in enumerate(spec.dims) if d.kind == "parallel"]
        reduced = [i for i, d in enumerate(spec.dims) if d.kind != "parallel"]
        operand = spec.operands[right["operand"]]
        sums = prod(sizes[i] for i in reduced)
        sparse = operand.sparsity
        columns = prod(sizes[i] for i in parallel if i in in_right and i not in in_left)
        batches = prod(sizes[i] for i in parallel if i in in_left and i in in_right)
        whole = max(columns * batches * sums, 1)
        return Sizes(
            rows=prod(sizes[i] for i in parallel if i in in_left and i not in in_right),
            columns=columns,
            sums=sums,
            batches=batches,
            window=any(i in in_left and _shares_steps(left, i, parallel, values) for i in reduced),
            items=(ITEM_SIZE[spec.operands[left["operand"]].dtype], ITEM_SIZE[operand.dtype]),
            right=right["operand"],
            packed=operand.role == "packed",
            quantized=operand.dtype == "i8",
            masked=bool(left.args),
            stored=min(1.0, sparse.elements / whole) if sparse else 1.0,
            block=sparse.rows * sparse.columns if sparse else 1,
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
        ]


def _without_product(spec: KernelSpec, sizes: list[int]) -> Sizes:
    parallel = [size for size, d in zip(sizes, spec.dims, strict=True) if d.kind == "parallel"]
    sums = prod(size for size, d in zip(sizes, spec.dims, strict=True) if d.kind != "parallel")
    columns = parallel[-1] if parallel else 1
    item = ITEM_SIZE[spec.operands[0].dtype] if spec.operands else 0
    masked = any(i.op == "load" and i.args for i in spec.body)
    return Sizes(prod(parallel[:-1]), columns, sums, 1, False, (item, 0), -1, False, False, masked, 1.0, 1)


def _factor(spec: KernelSpec, value: int) -> Instr:
    """The load behind a factor: through conversions, and of codes through their scale and zero point, the first argument of each."""
    instr = spec.body[value]
    while instr.op != "load":
        instr = spec.body[next(a for a in instr.args if _loads(spec, a))]
    return instr


def _loads(spec: KernelSpec, value: int) -> bool:
    instr = spec.body[value]
    return instr.op == "load" or any(_loads(spec, a) for a in instr.args)


def _dims(load: Instr, values: Mapping[str, int]) -> frozenset[int]:
    return frozenset(int(name[1:]) for name, _ in steps(load["address"], values) if name[0] == "d")


def _shares_steps(load: Instr, dim: int, parallel: list[int], values: Mapping[str, int]) -> bool:
    """Whether a parallel dimension moves by a multiple of a summed one's step, or by less than the summed one reaches: taps of a window.

    Of a matrix the rows' step is a multiple of the sums' too; a window's is not as long as its row.
    """
    step = dict(steps(load["address"], values))
    own = step.get(f"d{dim}", 0)
    return own > 0 and any(step.get(f"d{p}", 0) in (own, 2 * own) for p in parallel)
