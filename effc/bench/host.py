"""The machine and the versions of what is measured on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from effc.costmodel.hardware import describe, flags

_PACKAGES = (
    "effc",
    "torch",
    "torch-mlir",
    "openvino",
    "onnxruntime",
    "onnx",
    "onnxscript",
    "torchao",
    "nncf",
    "triton",
)


def host(key: str, vector_bytes: int, device: str = "cpu") -> dict[str, Any]:
    """``key``, ``vector_bytes``: of the target that effc compiles for on the CPU. ``device``: on which models ran."""
    found = describe(key, vector_bytes, lambda: None)
    return {
        "cpu": found.name,
        "cores": found.cores,
        "cpus_online": os.cpu_count(),
        "caches": {"l1": found.l1, "l2": found.l2, "l3": found.l3},
        "vectors": [f for f in flags() if f.startswith(("avx", "amx", "fma"))],
        "target": key,
        "system": platform.platform(),
        "python": platform.python_version(),
        **({"gpu": _gpu()} if device == "cuda" else {}),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }


def _gpu() -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "processors": found.multi_processor_count,
        "memory": found.total_memory,
        "cuda": torch.version.cuda,
        "fp32_precision": torch.backends.cuda.matmul.fp32_precision,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
