"""How well the facts of the code are predicted of what the model has not seen, beside what the known kernels have in the median."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from effc.costmodel.model.dataset import CODE, Dataset
from effc.costmodel.model.evaluation import parts_of, without
from effc.costmodel.model.figures import Figures, by_family, mean_of
from effc.costmodel.model.ranking import auroc
from effc.costmodel.model.training import ROUNDS, train

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CodeErrors(Figures):
    """``instructions``, ``code_bytes``: mean absolute error as a share of the true number; ``spills``: area under the curve for any against
    none; ``vector_share``: mean absolute error.
    """

    records: int
    instructions: float
    code_bytes: float
    spills: float
    vector_share: float


def held_out_code(
    data: Dataset,
    seeds: Sequence[int],
    workers: int = 1,
    rounds: int = ROUNDS,
    watch: Callable[[str], None] = lambda text: None,
    by: str = "family",
) -> dict[str, dict[str, CodeErrors]]:
    """By family, and ``all``, then by who predicts, ``model`` or ``constant``; the mean over ``seeds``. None where the traces know nothing
    of the code.
    """
    known = np.asarray(~np.isnan(data.code).any(axis=1))
    data = data.only(known)
    if not len(data):
        return {}
    runs = []
    for seed in seeds:
        parts = parts_of(data, by, seed)
        model = {name: np.full(len(data), np.nan) for name in CODE}
        constant = {name: np.zeros(len(data)) for name in CODE}
        for part in np.unique(parts):
            test, rest = without(data, parts, part)
            watch(f"code, seed {seed}, without {', '.join(sorted(set(data.families[test])))}")
            learned = data.only(rest)
            found = train(learned, seed, workers, rounds, targets=CODE).code(data.rows[test])
            for at, name in enumerate(CODE):
                model[name][test] = found[name]
                constant[name][test] = np.median(learned.code[:, at])
        predicted = {"model": model, "constant": constant}
        runs.append(by_family(data.families, partial(_judged, data, predicted)))
    return mean_of(runs)


def _judged(
    data: Dataset, predicted: Mapping[str, Mapping[str, Array]], chosen: NDArray[np.bool_]
) -> dict[str, CodeErrors]:
    return {who: _errors(data, facts, chosen) for who, facts in predicted.items()}


def _errors(data: Dataset, predicted: Mapping[str, Array], chosen: NDArray[np.bool_]) -> CodeErrors:
    true = dict(zip(CODE, data.code[chosen].T, strict=True))
    found = {name: values[chosen] for name, values in predicted.items()}

    def share(name: str) -> float:
        return float(np.mean(np.abs(found[name] - true[name]) / true[name]))

    return CodeErrors(
        records=int(chosen.sum()),
        instructions=share("instructions"),
        code_bytes=share("code_bytes"),
        spills=auroc(found["spills"], true["spills"] > 0),
        vector_share=float(np.mean(np.abs(found["vector_share"] - true["vector_share"]))),
    )
