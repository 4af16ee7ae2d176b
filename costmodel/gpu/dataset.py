"""Records of GPU kernels as arrays: what their code's model is trained on and judged by."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.gpu import features
from effc.costmodel.gpu.machine import Gpu
from effc.costmodel.gpu.traces import Facts, GpuPart, GpuTrace
from effc.costmodel.model.dataset import shape_names

#: Facts, as columns of numbers.
FACTS = tuple(f.name for f in fields(Facts))
#: Sizes by which shapes are told apart, and how much larger those of the next kind are, as a power of two.
_SIZES = tuple(features.COLUMNS.index(f"log_{name}") for name in ("rows", "columns", "sums"))
_OCTAVES = 2


@dataclass(frozen=True)
class GpuData:
    """``rows``: features; ``facts``: `FACTS` of each, NaN where it was refused; ``gpu``: the number of each one's among ``gpus``.
    ``families`` as in the traces; ``shapes``: kernels of one family and about one size, ``sites``: one kernel, on all GPUs. ``skipped``:
    records left out, by reason.
    """

    rows: NDArray[np.float32]
    facts: NDArray[np.float64]
    gpu: NDArray[np.intp]
    families: NDArray[np.str_]
    shapes: NDArray[np.str_]
    sites: NDArray[np.str_]
    skipped: Counter[str]
    gpus: tuple[Gpu, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, chosen: NDArray[np.bool_]) -> GpuData:
        """The records where ``chosen`` holds."""
        arrays = (f.name for f in fields(self) if f.name not in ("skipped", "gpus"))
        return replace(self, **{name: getattr(self, name)[chosen] for name in arrays})

    def fact(self, name: str) -> NDArray[np.float64]:
        """One of `FACTS`, of each record."""
        return self.facts[:, FACTS.index(name)]

    @property
    def refused(self) -> NDArray[np.bool_]:
        return np.isnan(self.fact("registers"))


def dataset(parts: Iterable[GpuPart]) -> GpuData:
    """Of the records of all parts, each kernel, schedule and GPU once. OptionError: there are none."""
    skipped: Counter[str] = Counter()
    known: dict[tuple[Gpu, str], tuple[GpuTrace, KernelSpec]] = {}
    for part in parts:
        skipped.update(part.skipped)
        for trace in part.traces:
            known.setdefault((part.gpu, trace.spec), (trace, trace.kernel))
    by_gpu: dict[Gpu, list[tuple[GpuTrace, KernelSpec]]] = defaultdict(list)
    for (gpu, _), found in known.items():
        by_gpu[gpu].append(found)
    if not by_gpu:
        raise OptionError("the traces hold no record to learn from: collect first")
    listed = [trace for found in by_gpu.values() for trace, _ in found]
    rows = np.concatenate([features.matrix([spec for _, spec in found], gpu) for gpu, found in by_gpu.items()])
    families = np.array([trace.family for trace in listed])
    return GpuData(
        rows=rows,
        facts=np.array([_facts(trace) for trace in listed]),
        gpu=np.repeat(np.arange(len(by_gpu)), [len(found) for found in by_gpu.values()]),
        families=families,
        shapes=shape_names(families, rows[:, _SIZES], _OCTAVES),
        sites=np.array([trace.computation for trace in listed]),
        skipped=skipped,
        gpus=tuple(by_gpu),
    )


def _facts(trace: GpuTrace) -> list[float]:
    return [float(getattr(trace.facts, name)) if trace.facts is not None else float("nan") for name in FACTS]
