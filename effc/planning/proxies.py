"""Estimated errors of compressed weights: of a layer's own output."""

from __future__ import annotations

from torch import Tensor

from effc.compiler.compress.form import Form, multiplied
from effc.compiler.compress.inputs import Inputs
from effc.compiler.ir.calibration import Statistics


def output_error(form: Form | Tensor, matrix: Tensor, statistics: Statistics | None, name: str) -> float:
    """Relative L2 error of what the layer gives for the rows of ``statistics``, weight and activations held as ``form`` holds them; or with
    another weight, float32 ``[out, sum]``, for exact ones.

    ``matrix``: the weight ``name``, float32 [out, sum]. Of a convolution, positions of a window count one by one. Where calibration has
    not seen the activation (of an embedding, or in groups), the error is the weight's own.
    """
    if statistics is None or matrix.shape[1] % len(statistics.least):
        return _relative(form if isinstance(form, Tensor) else form.dense(), matrix)
    inputs = Inputs.of(statistics, name)
    found = multiplied(inputs, form) if isinstance(form, Tensor) else form.outputs(inputs)
    return _relative(found, multiplied(inputs, matrix))


def _relative(found: Tensor, exact: Tensor) -> float:
    size = float(exact.norm())
    return float((found - exact).norm()) / size if size else 0.0
