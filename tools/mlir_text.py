"""An ablation of the cost model: what the text of a kernel's MLIR predicts, beside the features of its spec and with them.

    python tools/mlir_text.py --traces traces --seeds 3

The text is what the template emits for the traced kernel under its schedule. As in "ML-driven Hardware Cost Model for MLIR" (Das and
Mannarswamy, 2023), its tokens are names of operations, shapes of vectors and numbers; here n-grams of them are counted, hashed into
buckets, and trees learn from the counts, trained and judged as `effc costmodel eval` does: families held out whole. Rows of the table:
``count``: cycles as they are counted, nothing learned; ``spec``: the features that ship, which correct the count; ``text``: learns the
logarithm of the time itself, for the count is made of the spec; ``text on the count``: the text's tokens correct the count; ``both``.

Nothing of this is on the way of a plan.
"""

from __future__ import annotations

import argparse
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightgbm
import numpy as np
from numpy.typing import NDArray

from effc.compiler.codegen.cpu.emit import emit
from effc.compiler.codegen.cpu.target import Target
from effc.costmodel.model.dataset import Dataset, dataset
from effc.costmodel.model.evaluation import Errors, errors, parts_of, without
from effc.costmodel.model.figures import mean
from effc.costmodel.parquet import files
from effc.costmodel.traces import read

#: Operations with their dialect, types of vectors, numbers; no names of values.
_TOKEN = re.compile(r"(?<![%\w])(?:[a-z_]+\.[a-z_0-9.]+\b|vector<[0-9x]+[a-z0-9]+>|\d+\b)")
_BUCKETS, _LONGEST = 512, 2
_ROUNDS = 200
_TREES = {
    "objective": "quantile", "alpha": 0.5, "num_leaves": 31, "max_depth": 8, "learning_rate": 0.05, "min_data_in_leaf": 10,
    "feature_fraction": 0.5, "bagging_fraction": 0.8, "bagging_freq": 1, "deterministic": True, "force_row_wise": True, "verbosity": -1,
}  # fmt: skip

Array = NDArray[np.float64]


def tokens(text: str) -> list[str]:
    """Of MLIR: in its order, without what names values, functions and attributes."""
    return _TOKEN.findall(text)


def counts(text: str) -> NDArray[np.float32]:
    """``[_BUCKETS]``: log2(1 + number) of the n-grams of up to `_LONGEST` tokens that fall into each bucket."""
    found: Counter[int] = Counter()
    listed = tokens(text)
    for length in range(1, _LONGEST + 1):
        for gram in zip(*(listed[i:] for i in range(length)), strict=False):
            found[zlib.crc32(" ".join(gram).encode()) % _BUCKETS] += 1
    row = np.zeros(_BUCKETS, np.float32)
    row[list(found)] = list(found.values())
    return np.log2(1 + row)


def judged(data: Dataset, rows: NDArray[np.float32], base: Array, seeds: Sequence[int], workers: int) -> Errors:
    """Of trees that learn from ``rows`` the logarithm of the time over ``base``, each family predicted by those that have not seen it."""
    learned, runs = np.log2(data.seconds / base), []
    for seed in seeds:
        predicted, parts = np.zeros(len(data)), parts_of(data, "family", seed)
        for part in np.unique(parts):
            test, rest = without(data, parts, part)
            trees = lightgbm.train(
                {**_TREES, "seed": seed, "num_threads": workers}, lightgbm.Dataset(rows[rest], learned[rest]), _ROUNDS
            )
            predicted[test] = base[test] * np.exp2(np.asarray(trees.predict(rows[test])))
        runs.append(errors(data, predicted, predicted))
    return mean(runs)


def table(data: Dataset, seeds: Sequence[int], workers: int) -> Iterator[tuple[str, Errors]]:
    """Each set of features by name, and its errors. ValueError: the records are of several machines."""
    if len(data.machines) > 1:
        raise ValueError("these traces are of several machines: give those of one")
    target, began = Target.host(), time.process_time()
    text = np.stack([counts(emit(trace.kernel, target)) for trace in data.traces])
    print(f"a text and its counts take {1e3 * (time.process_time() - began) / len(text):.1f} ms of a core")
    both = np.concatenate([data.rows, text], axis=1)
    plain = np.ones(len(data))
    yield "count", errors(data, data.counted, data.counted)
    for name, rows, base in (
        ("spec", data.rows, data.counted),
        ("text", text, plain),
        ("text on the count", text, data.counted),
        ("both", both, data.counted),
    ):
        yield name, judged(data, rows, base, seeds, workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    data = dataset([read(path) for path in files(args.traces)])
    print("| features | MAPE | within 10 % | Kendall's tau | regret |\n|---|---|---|---|---|")
    for name, found in table(data, range(args.seeds), args.workers):
        figures = f"{found.mape:.1%} | {found.within:.0%} | {found.tau:.2f} | {found.regret:.1%}"
        print(f"| {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
