"""What is compared: eager PyTorch, its other compilers, and effc; one adapter each."""

from __future__ import annotations

from effc.bench.systems.in_torch import Eager, Effc, EffcQuantize, EffcSaved, Inductor
from effc.bench.systems.onnx import OnnxRuntime
from effc.bench.systems.openvino import OpenVino
from effc.bench.systems.system import DTYPES, Setting, System
from effc.bench.systems.weight_only import EffcWeights, TorchaoWeights

#: In the order in which tables show them; the last is ours.
SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        Eager(),
        Inductor(),
        Inductor(freezing=True),
        Inductor(autotune=True),
        OpenVino(),
        OnnxRuntime(),
        TorchaoWeights("int8"),
        TorchaoWeights("int4"),
        EffcQuantize(),
        EffcWeights("int8"),
        EffcWeights("int4"),
        EffcSaved(),
        Effc(),
    )
}
OURS = "effc"
_ON_GPUS = ("inductor-max-autotune", "torchao-int8", "torchao-int4", "effc-int8", "effc-int4")
#: Those that are compared on a CPU, and on a CUDA device.
ON = {
    "cpu": tuple(name for name in SYSTEMS if name not in _ON_GPUS),
    "cuda": ("eager", "inductor", *_ON_GPUS, OURS),
}
#: Ours too, so no rivals.
ALSO_OURS = (EffcQuantize.name, EffcSaved.name, "effc-int8", "effc-int4")

__all__ = ["ALSO_OURS", "DTYPES", "ON", "OURS", "SYSTEMS", "Setting", "System"]
