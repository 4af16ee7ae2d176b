"""Features of a kernel on a machine: a fixed list of named numbers, from the spec alone, without building MLIR.

``matrix`` is the whole interface: a row a kernel, a column a name in `COLUMNS`. What begins with ``log_`` is ``log2(1 + x)`` of a size,
a count or nanoseconds, with ``ratio_`` the logarithm of a quotient; shares are plain, flags 0 or 1; NaN says that a column has no
meaning here. `VERSION` changes with every change of a column's name, place or meaning: models and feature files carry it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.features import bounds, code, cycles, fit, kernel, machine, nest, schedules, work
from effc.costmodel.features.core import Core
from effc.costmodel.features.kernel import Facts
from effc.costmodel.features.scale import scaled
from effc.costmodel.hardware import Hardware

VERSION = 6

#: Columns that a schedule leaves as they are come first.
COLUMNS: tuple[str, ...] = (
    *machine.COLUMNS, *work.COLUMNS, *nest.COLUMNS, *fit.COLUMNS, *bounds.COLUMNS, *cycles.COLUMNS,
    *code.COLUMNS,
)  # fmt: skip

#: ``(spec, values of its symbols)``.
Kernel = tuple[KernelSpec, Sequence[int]]


def matrix(kernels: Iterable[Kernel], hardware: Hardware, threads: int) -> NDArray[np.float32]:
    """``[kernels, len(COLUMNS)]``, for calls with so many threads. What the schedules of one kernel share is computed once, where they
    hold the same loop nest (as ``dataclasses.replace`` leaves it).
    """
    known: dict[tuple[object, ...], int] = {}
    facts: list[Facts] = []
    values: list[Mapping[str, int]] = []
    listed, which = [], []
    for spec, symbols in kernels:
        key = (spec.template, id(spec.body), id(spec.dims), id(spec.attributes), id(spec.stages), tuple(symbols))
        number = known.get(key)
        if number is None:
            number = known[key] = len(facts)
            values.append(dict(zip(spec.symbols, symbols, strict=True)))
            facts.append(Facts.of(spec, values[number], hardware))
        listed.append((spec, facts[number].stage, values[number]))
        which.append(number)
    if not listed:
        return np.zeros((0, len(COLUMNS)), np.float32)
    shared = np.array([f.numbers for f in facts])[which].T
    table = {**dict(zip(kernel.NAMES, shared, strict=True)), **schedules.numbers(listed)}
    core, speed = Core.of(hardware), hardware.speed_of(threads)
    table |= fit.fitted(table, core, hardware, threads)
    table |= bounds.columns(table, hardware, speed, threads)
    table |= cycles.columns(table, core, hardware, threads)
    table |= code.columns(table)
    host = np.tile(machine.row(hardware, threads), (len(listed), 1))
    own = np.stack([table[name] for name in (*fit.COLUMNS, *bounds.COLUMNS, *cycles.COLUMNS, *code.COLUMNS)], axis=1)
    return scaled(np.concatenate([host, np.array([f.row for f in facts])[which], own], axis=1), COLUMNS)
