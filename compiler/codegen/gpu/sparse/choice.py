"""Whether a product on a GPU leaves out the zeros of its matrix, and how: what is counted to cost least.

Schedule: ``sparse``: ``"tiles"``, ``bm`` rows of a program times one row of blocks, on tensor cores where factors have 16 bits; or
``"rows"``, a single row of a program, whose products are summed without. ``bk``: elements of the sum in a step, whole blocks. ``warps``;
``stages`` of loads in flight.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from effc.compiler.codegen.gpu.body import flat_size
from effc.compiler.codegen.gpu.contraction import roles
from effc.compiler.codegen.gpu.contraction import schedule as dense
from effc.compiler.codegen.gpu.indices import MOST_I32
from effc.compiler.codegen.gpu.launch import power_of_two
from effc.compiler.codegen.gpu.sparse.form import Form, find
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.expr import const
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec, Operand, Schedule

#: Share of the dense kernel's cycles that a sparse one may have: no count was held against hardware.
MARGIN = 0.75
#: Bytes that a load takes from L2 at least.
_SECTOR = 32
#: Elements of a tile of the matrix that one program of a single row reads in a step; of the list it may have fewer.
_STEP_ELEMENTS = 1024
#: Cycles that a step waits for what it gathers, whose places it has to read first.
_LATENCY = 500
#: Rows of blocks that tensor cores take.
_LEAST_ROWS, _MOST_ROWS = 16, 128
#: Bytes of the numbers that say where blocks are.
_NUMBER = 4


def chosen(spec: KernelSpec, target: GpuTarget) -> Schedule | None:
    """How ``spec``, one of whose operands has a known ``sparsity``, leaves out zeros; None: it does not."""
    form = find(spec)
    if isinstance(form, str) or not _cut_evenly(form) or form.sparsity.elements > MOST_I32:
        return None  # elements are numbered by 32 bits
    best = min(schedules(form), key=lambda s: cost(form, target, s))
    return best if cost(form, target, best) < MARGIN * dense_cost(form, target) else None


def sparse_spec(spec: KernelSpec, schedule: Schedule, weight: int) -> KernelSpec:
    """``spec`` with the operand ``weight`` packed: in its place are the blocks' elements, ``[stored][columns][rows]``; behind all operands,
    of each block its place along the sum, and of each row of blocks the number of its first one, and of all blocks.
    """
    found = find(spec)
    assert isinstance(found, Form), "a schedule was chosen"
    s, operands = found.sparsity, list(spec.operands)
    operands[weight] = replace(operands[weight], role="packed", size=const(s.elements))
    operands += [Operand("i32", "packed", const(s.stored)), Operand("i32", "packed", const(found.lists + 1))]
    return replace(spec, operands=tuple(operands), schedule=schedule)


def derivations(form: Form) -> list[tuple[str, dict[str, Any]]]:
    """Function and attributes that make the three packed operands of the matrix, in their order."""
    s = form.sparsity
    given = {"sizes": (form.columns, form.length), "block": (s.rows, s.columns), "stored": s.stored, "offset": 0}
    return [(name, dict(given)) for name in ("block_elements", "block_places", "block_starts")]


def schedules(form: Form) -> list[Schedule]:
    """All that may be chosen."""
    s = form.sparsity
    mean = max(1, -(-s.stored // form.lists)) * s.columns
    found = [_schedule("rows", 1, max(s.columns, power_of_two(const(mean), 16, max(16, _STEP_ELEMENTS // s.rows))))]
    if _LEAST_ROWS <= s.rows <= _MOST_ROWS:
        rows = flat_size(form.spec, form.rows)
        for bm in sorted({power_of_two(rows, 16, block) for block in (16, 32, 64, 128)}):
            for bk in sorted({max(s.columns, block) for block in (16, 32, 64)}):
                found.append(_schedule("tiles", bm, bk))
    return found


def _schedule(method: str, bm: int, bk: int) -> Schedule:
    return Schedule((("bk", bk), ("bm", bm), ("sparse", method), ("stages", 2), ("warps", 4)))


def _cut_evenly(form: Form) -> bool:
    """Whether tiles, whose sides are powers of two, are whole blocks."""
    s = form.sparsity
    return s.stored > 0 and s.m == 0 and all(side & (side - 1) == 0 for side in (s.rows, s.columns))


def cost(form: Form, target: GpuTarget, schedule: Schedule) -> float:
    """Cycles, counted as those of a dense product are (`contraction.schedule`)."""
    s, size, rows = form.sparsity, ITEM_SIZE[form.dtype], dense.guess(flat_size(form.spec, form.rows))
    bm, bk = int(schedule["bm"]), int(schedule["bk"])
    steps = -(-s.stored * s.columns // (form.lists * bk))
    programs = -(-rows // bm) * form.lists
    blocks = bk // s.columns
    listed = bk * s.rows * size + blocks * _NUMBER
    gathered = bm * bk * size if _along_rows(form) else bm * blocks * max(s.columns * size, _SECTOR)
    loaded = (listed + gathered) / dense.NEAR_BYTES
    if schedule["sparse"] == "tiles":
        rate = dense.rate(target.arithmetic(form.spec, form.dtype), target, bm, s.rows)
        each = max(loaded, bm * s.rows * bk / rate) + dense.STEP + _LATENCY
    else:
        each = max(loaded, bk * s.rows / dense.SINGLE_RATE) + dense.STEP
    resident = target.processors * (1 if schedule["sparse"] == "tiles" else _PROGRAMS)
    far = (s.elements * size + s.stored * _NUMBER + rows * form.length * size) / (dense.FAR_BYTES * target.processors)
    return max(-(-programs // resident) * steps * each, far) + dense.OVERHEAD


#: Programs of four warps that a processor runs at once where each waits for memory.
_PROGRAMS = 8


def dense_cost(form: Form, target: GpuTarget) -> float:
    """Cycles of the kernel that would run if no zeros were known."""
    plain = replace(form.spec, operands=tuple(replace(o, sparsity=None) for o in form.spec.operands))
    found = roles.find(plain)
    if not isinstance(found, str):
        return dense.cost(found, target, dense.chosen(found, target))
    rows, size = dense.guess(flat_size(form.spec, form.rows)), ITEM_SIZE[form.dtype]
    matrix = form.columns * form.length * size
    far, near = matrix / dense.FAR_BYTES, rows * matrix / dense.NEAR_BYTES
    return max(far, near) / target.processors + dense.OVERHEAD


def _along_rows(form: Form) -> bool:
    """Whether neighbouring rows of the other factor are neighbours in memory, so that gathers along the sum read whole sectors."""
    loads = (i for i in roles.needed(form.spec, [form.factor]) if form.spec.body[i].op == "load")
    steps = [form.spec.body[i]["address"].coefficient(f"d{form.rows[-1]}") for i in loads] if form.rows else []
    return bool(steps) and all(step is not None and step.constant == 1 for step in steps)
