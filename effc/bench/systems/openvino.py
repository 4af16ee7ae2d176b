"""OpenVINO on the CPU: latency hint, one stream, static shapes, and the precision asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from effc.bench.systems.system import Call, Setting, missing, tensors

_PRECISION = {"float32": "f32", "bfloat16": "bf16"}


class OpenVino:
    """Writes into inputs are not carried out by the converted model: of a decode step it does a little less than the others."""

    name = "openvino"

    def absent(self, setting: Setting) -> str | None:
        return missing("openvino")

    def prepare(self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting) -> Call:
        import openvino

        flat = tensors(inputs)
        model = openvino.convert_model(torch.export.export(module, inputs))
        if len(model.inputs) != len(flat):
            raise ValueError(f"the converted model has {len(model.inputs)} inputs, the model {len(flat)} tensors")
        model.reshape({i: list(t.shape) for i, t in enumerate(flat)})
        compiled = openvino.compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": _PRECISION[setting.dtype],
                "INFERENCE_NUM_THREADS": setting.threads,
            },
        )
        request = compiled.create_infer_request()
        arrays = {i: t.numpy() for i, t in enumerate(flat)}

        def call() -> list[torch.Tensor]:
            results = request.infer(arrays, share_inputs=True, share_outputs=True)
            return [torch.from_numpy(value) for value in results.values()]

        return call
