"""Whether a product leaves out weights as zeros come, and in runs of how many columns."""

from __future__ import annotations

from math import ceil

from effc.compiler.codegen.cpu.skipping.form import Form, find
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import KernelSpec, Schedule

#: Cycles that a vector takes to list, a run of columns and an entry of the list beside products, and 64 bytes of weights from memory (two
#: cores share 10 to 20 GB/s) and from L2.
LIST_CYCLES, RUN_CYCLES, ENTRY_CYCLES, FAR_CYCLES, NEAR_CYCLES = 4, 100, 2, 10, 0.8
#: How many times as long as the dense kernel's a weight from L2 takes that is not left out: of bfloat16, whose vectors are widened where
#: the dense kernel sums pairs; and of a sum that is made by itself, whose vector is reduced and whose lines are asked for one by one.
#: Both together for ``outputs`` of bfloat16 (the break-evens of docs/activation_sparsity.md, from the cache).
WIDENING, SUMMING = 1.5, 1.25
#: Bytes of weights that L2 may hold from one call to the next.
NEAR_BYTES = 1 << 20
#: Vectors of a panel, and accumulators. Half of 1,536 rows of 576 columns from memory, on one Emerald Rapids core: 1.51 times as fast as
#: the dense kernel in panels of 4 vectors, 1.64 of 9, 1.58 to 1.62 of 18. Zen 4 fetches short runs badly: 0.86 of 9, 0.97 of 18.
WIDEST = 18
#: Most columns of a unit whose sums are made one by one.
OUTPUTS_WIDTH = 256
#: Units that threads share evenly: a multiple of it.
EVEN = 2


def chosen(packed: KernelSpec, target: Target) -> tuple[Form, Schedule] | None:
    """None: the dense kernel. ``packed``: the spec with its constant factor packed."""
    form = find(packed, target)
    if isinstance(form, str):
        return None
    width = _width(form, target.lanes(4))
    if not worth(form, width, target):
        return None
    return form, Schedule((("skip", form.method), ("width", width)))


def worth(form: Form, width: int, target: Target) -> bool:
    """Whether runs of ``width`` columns are counted to take less time than the dense kernel."""
    lanes = target.lanes(4)
    runs, rows, vectors = ceil(form.columns / width), form.sum, ceil(form.columns / lanes)
    if form.method == "outputs":
        rows, vectors = form.columns, ceil(form.sum / lanes)
    near = form.item * form.sum * form.columns <= NEAR_BYTES
    dense = rows * vectors * (NEAR_CYCLES if near else FAR_CYCLES) * form.item / 4
    remaining = (1 - form.share) * dense
    if near:
        remaining *= (WIDENING if form.dtype == "bf16" else 1) * (SUMMING if form.method == "outputs" else 1)
    else:
        # A gap costs the same however short the rows are.
        remaining *= 1 + (target.gaps - 1) * 4 / form.item if form.method == "inputs" else target.restarts
    entries = (1 - form.share) * rows * ENTRY_CYCLES * (runs if form.method == "inputs" else 1)
    return rows / lanes * LIST_CYCLES + runs * RUN_CYCLES + entries + remaining < dense


def unit_cycles(form: Form, width: int, lanes: int) -> int:
    """Of a run of ``width`` columns, from memory."""
    return int((1 - form.share) * FAR_CYCLES * form.item / 4 * form.sum * width / lanes) + RUN_CYCLES


def _width(form: Form, lanes: int) -> int:
    """Of a run of columns: of the panels those that are filled best, in an even number, and few."""
    vectors = ceil(form.columns / lanes)
    if form.method == "outputs":
        return ceil(vectors / _even(ceil(vectors * lanes / OUTPUTS_WIDTH))) * lanes

    def cost(width: int) -> tuple[int, int]:
        panels = ceil(vectors / width)
        return _even(panels) * (width + 2), panels * width

    return min(range(1, WIDEST + 1), key=cost) * lanes


def _even(units: int) -> int:
    return ceil(units / EVEN) * EVEN
