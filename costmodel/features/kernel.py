"""What all schedules of one kernel have in common, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from effc.compiler.ir.spec import KernelSpec
from effc.costmodel import roofline
from effc.costmodel.features import chains, strips
from effc.costmodel.features.bounds import LARGEST
from effc.costmodel.features.lanes import Lanes
from effc.costmodel.features.nest import Sizes
from effc.costmodel.features.work import Work
from effc.costmodel.hardware import Hardware

#: Of `Facts.numbers`.
NAMES: tuple[str, ...] = (
    *("rows", "columns", "sums", "batches", "tall", "wise", "masked", "left_item", "right_item"),
    *("stored", "block", "block_rows", "columns_out", "converts", "taps", "chain", "stride", "unaligned"),
    *("split", "inside", "first_rows", "last_rows", "elsewhere", "squares", "pages"),
    *chains.LOOPS,
    *("contracts", "is_attention", "lanes", "halved", "stacked", "step_rate", "rate", "operations"),
    *("vector_cycles", "function_cycles", "vector_asked", "body", "further_stages"),
    *strips.NAMES,
    *("read", "write", "activations"),
    *(f"bytes_{rank}" for rank in range(LARGEST)),
    *(f"reuse_{rank}" for rank in range(LARGEST)),
)


@dataclass(frozen=True)
class Facts:
    """``row``: the columns of `work` and `nest`; ``numbers``: by `NAMES`; ``stage``: the main one of a block."""

    row: list[float]
    numbers: list[float]
    stage: int

    @staticmethod
    def of(spec: KernelSpec, values: Mapping[str, int], hardware: Hardware) -> Facts:
        work, sizes = Work.of(spec, values), Sizes.of(spec, values)
        main = spec.stages[sizes.stage] if spec.stages else spec
        rate = roofline.rate(main, hardware.isa)
        product = main.template == "contraction"
        wise = product and sizes.columns == 1 and sizes.batches > 1
        pairs = sizes.packed and not wise  # neighbours of the sum lie together: one instruction sums them
        vectors = Lanes.of(main, sizes, hardware, wise)
        lanes, stacked = vectors.lanes, vectors.stacked > 1
        whole = lanes * (2 if vectors.halved else 1)
        together = sizes.sums / vectors.steps if stacked else rate if pairs else min(rate, 1.0)
        converts = product and not stacked and not (pairs and rate > 1) and max(sizes.items) == 2
        read = written = 0
        by_size = []
        for role, size, often in work.bytes_of(spec):
            if role in ("scratch", "packed"):
                continue
            read += size if role in ("read", "readwrite") else 0
            written += size if role in ("write", "readwrite") else 0
            by_size.append((size, often))
        by_size = [*sorted(by_size, reverse=True), *[(0, 0.0)] * LARGEST][:LARGEST]
        numbers = [
            *(sizes.rows, sizes.columns, sizes.sums, sizes.batches, sizes.tall, wise, sizes.masked, *sizes.items),
            *(
                sizes.stored,
                sizes.block,
                sizes.block_rows,
                sizes.further,
                converts,
                sizes.taps,
                chains.chain(sizes.summed, sizes.packed) if sizes.cut else sizes.sums,
                sizes.stride,
                sizes.unaligned,
            ),
            *(
                sizes.split,
                sizes.border.inside,
                sizes.border.first,
                sizes.border.last,
                sizes.border.elsewhere,
                sizes.squares,
                sizes.pages,
            ),
            *(
                chains.written_out(vectors.steps)
                if stacked
                else chains.loops(sizes.summed, sizes.packed, 2 if pairs and rate > 1 else 1, sizes.cut)
            ),
            *(product, spec.template == "attention", lanes, vectors.halved, vectors.stacked),
            *(together, rate, work.operations),
            *(work.cycles / whole, work.functions / whole, work.asked / whole, work.body, max(len(spec.stages) - 1, 0)),
            *work.strips,
            *(read, written, read + written),
            *(size for size, _ in by_size),
            *(often for _, often in by_size),
        ]
        return Facts([*work.row(), *sizes.row()], [float(n) for n in numbers], sizes.stage)
