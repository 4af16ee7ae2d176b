"""What quantization costs in accuracy: formats and algorithms on pretrained models, over seeds, with confidence intervals.

    make models && apt-get install dataset-fashion-mnist     # once
    python tools/quantized_accuracy.py --tasks language embeddings images --seeds 3 --threads 1
    python tools/quantized_accuracy.py --tasks language --rows 'int4' --seeds 1

`accuracy_table.py` says how a row is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import accuracy_table
from accuracy_table import together
from accuracy_tasks import TASKS, Task

import effc
from effc.compiler.compress.form import Form
from effc.compiler.compress.quantized import QuantizedWeight
from effc.compiler.compress.recipe import quantize
from effc.compiler.ir.quantization import Recipe, Scheme

#: Of the schemes below; a task has its own, in proportion.
_GROUP = 64
_NEAREST, _CLIPPED = Recipe(), Recipe(clipping="mse")
_AWQ, _GPTQ = Recipe("awq", clipping="mse"), Recipe(rounding="gptq", clipping="mse")
_BOTH, _SMOOTH = Recipe("awq", "gptq", "mse"), Recipe("smoothquant")
_INT8, _INT4, _NF4 = Scheme(), Scheme("int4", 64, symmetric=False), Scheme("nf4", 64)
_W8A8, _STATIC = Scheme(activations="token"), Scheme(activations="tensor")
_W4A8, _INT2 = Scheme("int4", 64, activations="token"), Scheme("int2", 64, symmetric=False)
_DUAL = Scheme("int4", 64, activations="token", scales="dual")


class Row(accuracy_table.Row):
    """Weights by ``scheme``, their codes by ``recipe``."""

    def __init__(self, format_: str, algorithm: str, scheme: Scheme, recipe: Recipe) -> None:
        self.cells = (format_, algorithm)
        self.scheme, self.recipe = scheme, recipe

    def compress(self, task: Task, calibration: effc.Calibration) -> Mapping[str, Form]:
        scheme = replace(self.scheme, group=self.scheme.group * task.group // _GROUP)
        found: dict[str, Form] = {}
        for names in together(task, calibration):
            weights = {name: task.model.get_parameter(name).detach() for name in names}
            found |= quantize(weights, scheme, self.recipe, calibration.sites[names[0]])
        return found

    def size(self, task: Task, forms: Mapping[str, Form]) -> str:
        return f"{bits([form for form in forms.values() if isinstance(form, QuantizedWeight)]):.2f}"


ROWS = (
    Row("int8 a channel", "nearest", _INT8, _NEAREST),
    Row("int8 a channel", "GPTQ", _INT8, Recipe(rounding="gptq")),
    Row("int4", "nearest", _INT4, _NEAREST),
    Row("int4", "nearest, percentile", _INT4, Recipe(clipping="percentile")),
    Row("int4", "nearest, least error", _INT4, _CLIPPED),
    Row("int4", "AWQ", _INT4, _AWQ),
    Row("int4", "GPTQ", _INT4, _GPTQ),
    Row("int4", "AWQ and GPTQ", _INT4, _BOTH),
    Row("int4, half and coarser", "FineQuant", Scheme("int4", 32, symmetric=False), Recipe(grouping="finequant")),
    Row("nf4", "nearest", _NF4, _NEAREST),
    Row("nf4, double", "nearest", Scheme("nf4", 64, scales="double"), _NEAREST),
    Row("nf4, double", "AWQ and GPTQ", Scheme("nf4", 64, scales="double"), _BOTH),
    Row("int2", "AWQ and GPTQ", _INT2, _BOTH),
    Row("W8A8, by token", "nearest", _W8A8, _NEAREST),
    Row("W8A8, by token", "SmoothQuant+", _W8A8, _SMOOTH),
    Row("W8A8, by token", "SmoothQuant+ and GPTQ", _W8A8, Recipe("smoothquant", "gptq", "mse")),
    Row("W8A8, by tensor", "nearest", _STATIC, _NEAREST),
    Row("W8A8, by tensor", "SmoothQuant+", _STATIC, _SMOOTH),
    Row("W4A8, by token", "nearest", _W4A8, _NEAREST),
    Row("W4A8, by token", "SmoothQuant+ and GPTQ", _W4A8, Recipe("smoothquant", "gptq", "mse")),
    Row("W4A8, dual, by token", "nearest", _DUAL, _NEAREST),
    Row("W4A8, dual, by token", "nearest, least error", _DUAL, _CLIPPED),
    Row("W4A8, dual, by token", "SmoothQuant+ and GPTQ", _DUAL, Recipe("smoothquant", "gptq", "mse")),
)


def bits(weights: Sequence[QuantizedWeight]) -> float:
    """Of a weight, on average: codes, scales, zero points; smoothing not, which the layer before may take in."""
    total = sum(w.codes.numel() * w.scheme.bits for w in weights)
    for w in weights:
        total += _scale_bits(w) + (0 if w.zeros is None else w.scheme.bits * w.zeros.numel())
    return total / sum(w.codes.numel() for w in weights)


def _scale_bits(weight: QuantizedWeight) -> int:
    if weight.scale_codes is not None:
        return 8 * weight.scale_codes.codes.numel() + 32 * (weight.scale_codes.block_scales.numel() + 1)
    if weight.dual is not None:
        return 8 * weight.dual.groups.numel() + 32 * weight.dual.channels.numel()
    return 32 * weight.scales.numel()


if __name__ == "__main__":
    accuracy_table.main(__doc__, ROWS, ("format", "algorithm", "bits"), list(TASKS))
