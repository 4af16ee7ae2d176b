"""ONNX Runtime on the CPU, of the graph that torch exports, with all of its optimizations."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from effc.bench.systems.system import Call, Setting, missing, tensors


class OnnxRuntime:
    """Writes into inputs are not carried out by the exported model: of a decode step it does a little less than the others."""

    name = "onnxruntime"

    def absent(self, setting: Setting) -> str | None:
        if setting.dtype == "int8":
            return "no int8 model is made for it"
        if setting.dtype != "float32":
            return f"its CPU kernels do not compute in {setting.dtype}"
        return missing("onnxruntime", "onnx", "onnxscript")

    def prepare(
        self, module: nn.Module, inputs: tuple[Any, ...], setting: Setting, calibration: Sequence[tuple[Any, ...]] = ()
    ) -> Call:
        import onnxruntime

        flat = tensors(inputs)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.inter_op_num_threads = 1
        program = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
        assert program is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            program.save(path, external_data=True)  # a protobuf holds at most 2 GiB
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        if len(names) != len(flat):
            raise ValueError(f"the exported model has {len(names)} inputs, the model {len(flat)} tensors")
        arrays = {name: tensor.numpy() for name, tensor in zip(names, flat, strict=True)}

        def call() -> list[torch.Tensor]:
            return [torch.from_numpy(value) for value in session.run(None, arrays)]

        return call
