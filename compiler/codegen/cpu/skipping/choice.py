"""Whether a product leaves out weights as zeros come, and in runs of how many columns."""

from __future__ import annotations

from math import ceil

from effc.compiler.codegen.cpu.skipping.form import Form, find
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import KernelSpec, Schedule

#: Share of zeros that is expected where there are some: what is not known, the data decides.
EXPECTED = 0.5
#: Cycles that listing a vector takes, those of a run of columns beside its products, and those of a vector of weights from memory (two
#: cores share 10 to 20 GB/s).
LIST_CYCLES, RUN_CYCLES, STREAM_CYCLES = 4, 100, 10
#: Vectors of a panel: wider rows are longer runs of lines, and their sums must fit the registers beside a broadcast and a weight.
WIDEST = 18
#: Columns of a unit whose sums are made one by one.
OUTPUTS_WIDTH = 256
#: Units that threads share evenly: a multiple of it.
EVEN = 2


def chosen(packed: KernelSpec, target: Target) -> tuple[Form, Schedule] | None:
    """None: the dense kernel. ``packed``: the spec with its constant factor packed."""
    form = find(packed, target)
    if isinstance(form, str):
        return None
    width = _width(form, target.lanes(4))
    lanes = target.lanes(4)
    runs = ceil(form.columns / width)
    listed = (form.sum if form.method == "inputs" else form.columns) / lanes * LIST_CYCLES
    saved = EXPECTED * form.sum * form.columns / lanes * STREAM_CYCLES
    if listed + runs * RUN_CYCLES >= saved:
        return None
    return form, Schedule((("skip", form.method), ("width", width)))


def _width(form: Form, lanes: int) -> int:
    """Of a run of columns: of the widest panels those that are filled best, in an even number."""
    vectors = ceil(form.columns / lanes)
    if form.method == "outputs":
        return min(OUTPUTS_WIDTH, vectors * lanes)

    def cost(width: int) -> float:
        panels = ceil(vectors / width)
        even = ceil(panels / EVEN) * EVEN
        return even * (width + 1)  # a vector's time for the list and the broadcast

    return min(range(1, WIDEST + 1), key=lambda w: (cost(w), -w)) * lanes
