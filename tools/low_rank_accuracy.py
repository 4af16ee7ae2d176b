"""What low-rank factors cost in accuracy: shares of parameters and methods on pretrained models, over seeds, with confidence intervals.

    make models && apt-get install dataset-fashion-mnist     # once
    python tools/low_rank_accuracy.py --tasks language embeddings --seeds 3 --threads 1

`accuracy_table.py` says how a row is measured. Parameters are those of all linear layers that a task compresses; int8 factors count a
quarter.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import accuracy_table
import torch
from accuracy_table import together
from accuracy_tasks import Task

import effc
from effc.compiler.compress.form import Form
from effc.compiler.compress.low_rank.factorize import choose, factorize
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.recipe import quantize
from effc.compiler.ir.quantization import Recipe, Scheme
from effc.passes.low_rank import LowRank, Method


class Row(accuracy_table.Row):
    """``kept``: the share of the parameters; ``int8``: the factors are quantized too."""

    def __init__(self, kept: float, method: Method, int8: bool) -> None:
        self.kept, self.method, self.int8 = kept, method, int8
        self.cells = (f"{kept:.0%}", method + (", int8" if int8 else ""))

    def compress(self, task: Task, calibration: effc.Calibration) -> Mapping[str, Form]:
        options = LowRank(parameters=self.kept, method=self.method, calibration=calibration)
        linear = [n for n in task.weights() if task.model.get_parameter(n).dim() == 2]
        groups = [[n for n in names if n in linear] for names in together(task, calibration)]
        weights = {name: task.model.get_parameter(name).detach() for name in linear}
        chosen = choose([g for g in groups if g], weights, options).values()
        taken = list(dict.fromkeys(c for c in chosen if c is not None))
        found = factorize(taken, weights, dict.fromkeys(weights, torch.float32), options)
        return {name: _in_bytes(form) if self.int8 else form for name, form in found.items()}

    def size(self, task: Task, forms: Mapping[str, Form]) -> str:
        """Of the parameters, in bytes: a factor that weights share counts once."""
        tensors = {id(part): part for form in forms.values() for role, part in form.parts().items() if role != "shift"}
        dense = [n for n in task.weights() if n not in forms and task.model.get_parameter(n).dim() == 2]
        left = sum(t.numel() for t in tensors.values()) / (4 if self.int8 else 1)
        kept = sum(task.model.get_parameter(n).numel() for n in dense)
        every = sum(
            task.model.get_parameter(n).numel() for n in task.weights() if task.model.get_parameter(n).dim() == 2
        )
        return f"{(left + kept) / every:.1%}"


def _in_bytes(form: Factors) -> Factors:
    made = {r: quantize({r: t}, Scheme(), Recipe())[r].dense() for r, t in (("left", form.left), ("right", form.right))}
    return Factors(made["left"], made["right"], form.shift)


_KEPT = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
_METHODS: tuple[tuple[Method, bool], ...] = (("svd", False), ("output", False), ("output", True))
ROWS = tuple(Row(kept, method, int8) for kept, (method, int8) in product(_KEPT, _METHODS))


if __name__ == "__main__":
    accuracy_table.main(__doc__, ROWS, ("parameters asked", "method", "parameters"), ("language",))
