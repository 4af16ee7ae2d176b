"""How well the facts of GPU code are predicted of shapes that the model has not seen, beside what is counted alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from effc.costmodel.gpu.dataset import GpuData
from effc.costmodel.gpu.machine import Gpu
from effc.costmodel.gpu.predictor import CHANCES, COUNTED, Array, counted
from effc.costmodel.gpu.training import ROUNDS, learned, train
from effc.costmodel.model.evaluation import parts_of, without
from effc.costmodel.model.figures import Figures, by_family, mean_of
from effc.costmodel.model.ranking import auroc

#: Blocks that a processor of a GPU holds at once, by warps, registers and shared memory.
Resident = Callable[[Gpu, int, int, int], int]


@dataclass(frozen=True)
class GpuErrors(Figures):
    """``registers``, ``shared``, ``instructions``: mean absolute error as a share of the true number; ``resident``: share of kernels of
    which as many blocks as predicted are held at once; ``spills``, ``refused``: area under the curve, NaN where all are alike.
    """

    records: int
    registers: float
    shared: float
    instructions: float
    resident: float
    spills: float
    refused: float


def held_out(
    data: GpuData,
    seeds: Sequence[int],
    resident: Resident,
    workers: int = 1,
    rounds: int = ROUNDS,
    watch: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, GpuErrors]]:
    """By family, and ``all``, then by who predicts, ``model`` or ``count``: kernels of about one size are held out together, the mean over
    ``seeds``. OptionError: there are not two sizes, or too few records.
    """
    runs = []
    for seed in seeds:
        parts = parts_of(data, "shape", seed)
        model = {name: np.full(len(data), np.nan) for name in (*COUNTED, *CHANCES)}
        for part in np.unique(parts):
            watch(f"seed {seed}, without a part of the shapes")
            test, rest = without(data, parts, part)
            for name, values in train(data.only(rest), seed, workers, rounds).facts(data.rows[test]).items():
                model[name][test] = values
        count = {name: counted(data.rows, name) for name in COUNTED}
        predicted = {"model": model, "count": count}
        runs.append(by_family(data.families, partial(_judged, data, predicted, resident)))
    return mean_of(runs)


def _judged(
    data: GpuData, predicted: Mapping[str, Mapping[str, Array]], resident: Resident, chosen: NDArray[np.bool_]
) -> dict[str, GpuErrors]:
    return {who: _errors(data, facts, chosen, resident) for who, facts in predicted.items()}


def _errors(data: GpuData, predicted: Mapping[str, Array], chosen: NDArray[np.bool_], resident: Resident) -> GpuErrors:
    test = data.only(chosen)
    found = {name: values[chosen] for name, values in predicted.items()}
    made = ~test.refused

    def share(name: str) -> float:
        true = np.maximum(test.fact(name), 1)
        return float(np.mean(np.abs(found[name] - true)[made] / true[made]))

    def ranked(name: str) -> float:
        true = learned(test, name)
        known = ~np.isnan(true) & ~np.isnan(found.get(name, np.full(len(test), np.nan)))
        return auroc(found[name][known], true[known] > 0) if known.any() else float("nan")

    held = [
        resident(
            test.gpus[test.gpu[i]], int(test.fact("warps")[i]), round(found["registers"][i]), round(found["shared"][i])
        )
        for i in np.flatnonzero(made)
    ]
    return GpuErrors(
        records=len(test),
        registers=share("registers"),
        shared=share("shared"),
        instructions=share("instructions"),
        resident=float(np.mean(held == test.fact("resident")[made])),
        spills=ranked("spills"),
        refused=ranked("refused"),
    )
