"""Schedules as columns: parameters by name, and the bytes of the operands whose size follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec

#: Of a kernel each: a number for every column of it.
Numbers = Mapping[str, NDArray[np.float64]]

#: Methods of a contraction, by the parameter of the schedule that names one, and its value where there are several.
METHODS = ("direct", "winograd", "sparse", "skip")
SPARSE = ("rows", "blocks", "columns", "dots", "groups", "window")
#: Parameters that are numbers, NaN where the schedule has none: those of a register tile, of which other features tell how it divides the
#: kernel; and others.
TILE = ("mr", "nr", "unroll")
PARAMETERS = ("touch", "tiles", "width", "lanes", "vector", "height", "sets")

_NAN = float("nan")
_NAMES = (
    *(f"schedule_{p}" for p in (*TILE, *PARAMETERS)),
    "rows_outside",
    *(f"by_{m}" for m in METHODS),
    *(f"by_sparse_{m}" for m in SPARSE),
    "packed",
    "scratch",
)


def numbers(kernels: Iterable[tuple[KernelSpec, int, Mapping[str, int]]]) -> Numbers:
    """Of each ``(spec, number of its main stage, values of its symbols)``; ``packed`` and ``scratch`` are bytes."""
    known: dict[tuple[tuple[str, int | str], ...], list[float]] = {}
    rows = []
    for spec, stage, values in kernels:
        parameters = (spec.stages[stage] if spec.stages else spec).schedule.parameters
        row = known.get(parameters)
        if row is None:
            row = known[parameters] = _row(dict(parameters))
        packed = scratch = 0
        for operand in spec.operands:
            if operand.role == "packed":
                packed += operand.size.evaluate(values) * ITEM_SIZE[operand.dtype]
            elif operand.role == "scratch":
                scratch += operand.size.evaluate(values) * ITEM_SIZE[operand.dtype]
        rows.append([*row, packed, scratch])
    table = np.array(rows, np.float64).reshape(len(rows), len(_NAMES))
    return dict(zip(_NAMES, table.T, strict=True))


def _row(parameters: Mapping[str, int | str]) -> list[float]:
    method = next((name for name in METHODS if parameters.get(name)), METHODS[0])
    values = [parameters.get(name) for name in (*TILE, *PARAMETERS)]
    return [
        *(float(v) if isinstance(v, int) else _NAN for v in values),
        float(parameters.get("order") == "rows"),
        *(float(method == name) for name in METHODS),
        *(float(parameters.get("sparse") == name) for name in SPARSE),
    ]
