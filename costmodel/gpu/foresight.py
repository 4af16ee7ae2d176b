"""Which tilings of a GPU kernel are best compiled last, by the model of GPU code in ``shipped``; none comes with effc yet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files as resources

from effc.compiler.ir.errors import ArtifactError
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.gpu.machine import Gpu
from effc.costmodel.gpu.predictor import CodePredictor, load


def expected_to_fail(kernels: Sequence[KernelSpec], gpu: Gpu) -> list[bool]:
    """Of one contraction under several schedules, whether each is all but certain to spill registers or to be refused. Nothing is expected
    of kernels whose sizes are not known, nor where no model can be read.
    """
    model = _model()
    if model is None or any(spec.symbols for spec in kernels):
        return [False] * len(kernels)
    return model.expected_to_fail(kernels, gpu)


@lru_cache(maxsize=1)
def _model() -> CodePredictor | None:
    try:
        return load(resources("effc.costmodel.gpu") / "shipped")[0]
    except ArtifactError:
        return None  # there is none, or it is of another version
