"""Features of a product's kernel on a GPU: sizes, the tiling, and counts of what its code will need.

The counts are of the form that triton gives such a kernel: each thread holds its share of the sums, and what it loads for a step; tiles in
flight lie in shared memory; a step is written out whole. Trees learn how far from them the truth is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.spec import CONVOLUTION, ITEM_SIZE, KernelSpec
from effc.costmodel.features.kinds import kind_of
from effc.costmodel.features.nest import Sizes
from effc.costmodel.features.scale import scaled
from effc.costmodel.gpu.machine import Gpu

VERSION = 1

#: Of a schedule (`codegen.gpu.contraction.schedule`).
TILING = ("bm", "bn", "bk", "group", "split", "stages", "warps", "descriptors", "persistent", "tail")
COLUMNS: tuple[str, ...] = (
    *("capability", "log_rows", "log_columns", "log_sums", "log_batches"),
    *("left_item", "right_item", "quantized", "window", "masked", "exact"),
    *("loads", "before", "functions", "after", "stores", "written_item"),
    *TILING,
    *("log_shared", "log_registers", "log_instructions"),
    *("sums_each", "loads_each", "products_each", "shared_share", "row_waste", "column_waste", "whole_step"),
)

_WARP = 32
#: Bytes that one thread loads at once, at most.
_VECTOR = 16
#: Products of one tensor instruction of a warp, with 16-bit factors: 16 x 8 x 16; of four warps on Hopper: 64 rows of all columns, 16 deep.
_PRODUCTS, _WIDE_ROWS, _WIDE_DEPTH = 2048, 64, 16
#: Registers around a kernel, and instructions; instructions of a load's address and mask, and of a sum that is stored.
_REGISTERS, _AROUND, _A_LOAD, _A_SUM = 30.0, 200.0, 4.0, 2.0

Array = NDArray[np.float64]


def matrix(kernels: Iterable[KernelSpec], gpu: Gpu) -> NDArray[np.float32]:
    """``[kernels, len(COLUMNS)]`` of contractions without symbols, with whole schedules. KeyError, ValueError: one is none."""
    rows = [_row(spec, gpu) for spec in kernels]
    return scaled(np.array(rows, np.float64).reshape(len(rows), len(COLUMNS)), COLUMNS)


def _row(spec: KernelSpec, gpu: Gpu) -> list[float]:
    sizes = Sizes.of(spec, {})
    tiling = {name: int(spec.schedule[name]) for name in TILING}
    bm, bn, bk = tiling["bm"], tiling["bn"], tiling["bk"]
    at = next(i for i, instr in enumerate(spec.body) if instr.op == "contract")
    rounds = gpu.tf32_convolutions if spec.get(CONVOLUTION) else gpu.tf32
    item = max(sizes.items)
    exact = item == 4 and not rounds
    counts = _Counts.of(spec, at)
    threads = _WARP * tiling["warps"]
    loaded = (bm + bn) * bk
    sums_each, loads_each = bm * bn / threads, loaded * item / threads / _VECTOR
    products = _products(gpu, bm, bn, bk, tiling["warps"], item, exact)
    shared = loaded * item * tiling["stages"]
    registers = _REGISTERS + sums_each + loads_each * _VECTOR / 4
    instructions = (
        _AROUND
        + products
        + loads_each * tiling["stages"] * (_A_LOAD + counts.before)
        + sums_each * (_A_SUM + counts.after)
    )
    return [
        float(gpu.capability),
        *(float(n) for n in (sizes.rows, sizes.columns, sizes.sums, sizes.batches)),
        *(float(n) for n in (*sizes.items, sizes.quantized, sizes.window, sizes.masked, exact)),
        *(float(n) for n in (counts.loads, counts.before, counts.functions, counts.after, counts.stores, counts.item)),
        *(float(tiling[name]) for name in TILING),
        *(float(shared), registers, instructions),
        *(sums_each, loads_each, products, shared / gpu.shared_bytes),
        *(-sizes.rows % bm / max(sizes.rows, 1), -sizes.columns % bn / max(sizes.columns, 1)),
        float(sizes.sums % bk == 0),
    ]


def _products(gpu: Gpu, bm: int, bn: int, bk: int, warps: int, item: int, exact: bool) -> float:
    """Instructions of a thread that multiply, in one step."""
    if exact:
        return bm * bn * bk / (_WARP * warps)
    depth = _WIDE_DEPTH * 2 / item
    if gpu.capability == 90 and bm >= _WIDE_ROWS:
        return max(bm * 4 / (_WIDE_ROWS * warps), 1) * max(bk / depth, 1)
    return max(bm * bn * bk * item / 2 / (_PRODUCTS * warps), 1)


@dataclass(frozen=True)
class _Counts:
    """Instructions of a body: ``loads``, ``before`` the product and ``after`` it, ``functions`` among these; ``stores``, the widest of
    ``item`` bytes.
    """

    loads: int
    before: int
    functions: int
    after: int
    stores: int
    item: int

    @staticmethod
    def of(spec: KernelSpec, at: int) -> _Counts:
        """``at``: number of the product."""
        work = [(i, instr) for i, instr in enumerate(spec.body) if instr.op not in ("constant", "index", "contract")]
        stores = [instr for _, instr in work if instr.op == "store"]
        return _Counts(
            loads=sum(instr.op == "load" for _, instr in work),
            before=sum(i < at and instr.op != "load" for i, instr in work),
            functions=sum(kind_of(instr) == "math" for _, instr in work),
            after=sum(i > at and instr.op != "store" for i, instr in work),
            stores=len(stores),
            item=max((ITEM_SIZE[spec.operands[instr["operand"]].dtype] for instr in stores), default=4),
        )
