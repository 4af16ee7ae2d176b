"""OpenVINO on the CPU: latency hint, one stream, static shapes, and the precision asked for; int8 by NNCF's post-training quantization."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from effc.bench.systems.system import Call, Setting, missing, tensors

#: Of floats.
_PRECISION = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
_ATTENTION = frozenset({"ScaledDotProductAttention", "Softmax"})


class OpenVino:
    """Writes into inputs are not carried out by the converted model: of a decode step it does a little less than the others."""

    name = "openvino"

    def absent(self, setting: Setting) -> str | None:
        return missing("openvino", "nncf") if setting.dtype == "int8" else missing("openvino")

    def prepare(
        self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting, calibration: Sequence[tuple[Any, ...]] = ()
    ) -> Call:
        import openvino

        flat = tensors(inputs)
        model = openvino.convert_model(torch.export.export(module, inputs))
        if len(model.inputs) != len(flat):
            raise ValueError(f"the converted model has {len(model.inputs)} inputs, the model {len(flat)} tensors")
        model.reshape({i: list(t.shape) for i, t in enumerate(flat)})
        if setting.dtype == "int8":
            model = _quantized(model, calibration)
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


def _quantized(model: Any, calibration: Sequence[tuple[Any, ...]]) -> Any:
    """By NNCF with its defaults; it is told which models are transformers, as its documentation asks, for which it quantizes otherwise."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    batches = [{i: t.numpy() for i, t in enumerate(tensors(batch))} for batch in calibration]
    transformer = any(op.get_type_name() in _ATTENTION for op in model.get_ops())
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
