"""What one-shot pruning costs in accuracy: patterns, shares of zeros and methods on pretrained models, with confidence intervals.

    make models && apt-get install dataset-fashion-mnist     # once
    python tools/pruned_accuracy.py --tasks language embeddings images --seeds 3 --threads 1
    python tools/pruned_accuracy.py --rows '16x1, 30' --seeds 1     # a few minutes

`accuracy_table.py` says how a row is measured. Weights that a pattern does not divide stay dense; zeros are a share of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import accuracy_table
from accuracy_table import together
from accuracy_tasks import TASKS, Task

import effc
from effc.compiler.compress.form import Form
from effc.compiler.compress.pruning.prune import prune
from effc.compiler.compress.pruning.pruned import PrunedWeight
from effc.compiler.ir.pattern import Pattern
from effc.passes.sparsity import Method


class Row(accuracy_table.Row):
    """``share`` of each weight becomes zeros."""

    def __init__(self, pattern: str, share: float, method: Method) -> None:
        self.pattern, self.share, self.method = Pattern.parse(pattern), share, method
        self.cells = (pattern, f"{share:.0%}", method)

    def compress(self, task: Task, calibration: effc.Calibration) -> Mapping[str, Form]:
        found: dict[str, Form] = {}
        for names in together(task, calibration):
            weights = {name: task.model.get_parameter(name).detach() for name in names}
            weights = {name: w for name, w in weights.items() if not self.pattern.misfit(name, w.shape)}
            pruned = prune(weights, self.pattern, self.share, self.method, calibration.sites[names[0]])
            found |= {n: PrunedWeight.existing(w.movedim(1, -1), self.pattern) for n, w in pruned.items()}
        return found

    def size(self, task: Task, forms: Mapping[str, Form]) -> str:
        every = sum(task.model.get_parameter(name).numel() for name in task.weights())
        return f"{sum(int((form.dense() == 0).sum()) for form in forms.values()) / every:.1%}"


_SHARES = (
    *product(("unstructured",), (0.3, 0.5, 0.7)),
    ("2:4", 0.5),
    ("4:8", 0.5),
    *product(("4x1", "16x1", "1x16"), (0.3, 0.5)),
)
_METHODS: tuple[Method, ...] = ("magnitude", "wanda", "sparsegpt")
ROWS = [Row(pattern, share, method) for (pattern, share), method in product(_SHARES, _METHODS)]


if __name__ == "__main__":
    accuracy_table.main(__doc__, ROWS, ("pattern", "asked", "method", "zeros"), list(TASKS))
