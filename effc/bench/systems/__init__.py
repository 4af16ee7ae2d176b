"""What is compared: eager PyTorch, its other compilers, and effc; one adapter each."""

from __future__ import annotations

from effc.bench.systems.in_torch import Eager, Effc, EffcQuantize, EffcSaved, Inductor
from effc.bench.systems.onnx import OnnxRuntime
from effc.bench.systems.openvino import OpenVino
from effc.bench.systems.system import DTYPES, Setting, System

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
        EffcQuantize(),
        EffcSaved(),
        Effc(),
    )
}
OURS = "effc"
#: Those that are compared on a CPU, and on a CUDA device.
ON = {
    "cpu": tuple(name for name in SYSTEMS if name != "inductor-max-autotune"),
    "cuda": ("eager", "inductor", "inductor-max-autotune", OURS),
}
#: Ours too, so no rivals.
ALSO_OURS = (EffcQuantize.name, EffcSaved.name)

__all__ = ["ALSO_OURS", "DTYPES", "ON", "OURS", "SYSTEMS", "Setting", "System"]
