"""Features of a kernel on a machine: a fixed list of named numbers, from the spec alone, without building MLIR.

``matrix`` is the whole interface: a row a kernel, a column a name in `COLUMNS`. What begins with ``log_`` is ``log2(1 + x)`` of a size,
a count or nanoseconds, with ``ratio_`` the logarithm of a quotient; shares are plain, flags 0 or 1; NaN says that a column has no
meaning here. `VERSION` changes with every change of a column's name, place or meaning: models and feature files carry it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.spec import KernelSpec
from effc.costmodel import roofline
from effc.costmodel.features import bounds, fit, machine, nest, work
from effc.costmodel.features.nest import Sizes
from effc.costmodel.features.scale import scaled
from effc.costmodel.features.work import Work
from effc.costmodel.hardware import Hardware

VERSION = 1

#: Columns that a schedule leaves as they are come first.
COLUMNS: tuple[str, ...] = (*machine.COLUMNS, *work.COLUMNS, *nest.COLUMNS, *fit.COLUMNS, *bounds.COLUMNS)

#: ``(spec, values of its symbols)``.
Kernel = tuple[KernelSpec, Sequence[int]]


def matrix(kernels: Iterable[Kernel], hardware: Hardware, threads: int) -> NDArray[np.float32]:
    """``[kernels, len(COLUMNS)]``, for calls with so many threads. What the schedules of one kernel share is computed once, where they
    hold the same loop nest (as ``dataclasses.replace`` leaves it).
    """
    listed = list(kernels)
    known: dict[tuple[object, ...], _Shared] = {}
    host, speed = machine.row(hardware, threads), hardware.speed_of(threads)
    rows = []
    for spec, symbols in listed:
        key = (spec.template, id(spec.body), id(spec.dims), id(spec.attributes), id(spec.stages), tuple(symbols))
        shared = known.get(key)
        if shared is None:
            shared = known[key] = _Shared.of(spec, dict(zip(spec.symbols, symbols, strict=True)), hardware)
        fitted = fit.Fit.of(spec, shared.sizes, hardware, threads)
        bounded = bounds.row(shared.work, shared.work.bytes_of(spec), fitted, hardware, speed, shared.rate)
        rows.append([*host, *shared.row, *fitted.row(), *bounded])
    return scaled(np.array(rows, np.float64).reshape(len(rows), len(COLUMNS)), COLUMNS)


@dataclass(frozen=True)
class _Shared:
    """What schedules of one kernel have in common; ``row``: their columns of `work` and `nest`."""

    work: Work
    sizes: Sizes
    rate: float
    row: list[float]

    @staticmethod
    def of(spec: KernelSpec, values: Mapping[str, int], hardware: Hardware) -> _Shared:
        done, sizes = Work.of(spec, values), Sizes.of(spec, values)
        return _Shared(done, sizes, roofline.rate(spec, hardware.isa), [*done.row(), *sizes.row()])
