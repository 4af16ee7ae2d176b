"""How long models take to compile for a GPU, without one: seconds of the first call, and of the first when the cache has all of it.

    PYTHONPATH=tests:tools python -P tools/gpu_first_call.py

Kernels are triton's cubins for sm_90, made by the toolchain's processes at once; launches do nothing. What torch does once in a process
counts to the first model's first call.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from gpu_calls import Idle
from gpu_programs import host
from torch.utils._pytree import tree_map

from effc.bench.models import build
from effc.compiler.build import Built
from effc.compiler.capture.backend import compile_with
from effc.compiler.gpu.build import GpuBuilt, build_gpu
from effc.compiler.ir.options import Options
from effc.runtime.cache import Cache

_MODELS = ("bert_base", "resnet50")


def timed(model: torch.nn.Module, inputs: Sequence[Any], cache: Cache) -> tuple[float, list[GpuBuilt]]:
    """Seconds until the first call returns, and what was built in it."""
    found: list[GpuBuilt] = []

    def make(text: str) -> Built:
        found.append(build_gpu(text, options={}, cache=cache, device=Idle(), host=host()))
        return cast(Built, found[-1])

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=lambda gm, given: compile_with(gm, given, Options(), lambda _: make))
    start = time.perf_counter()
    with torch.no_grad():
        compiled(*inputs)
    return time.perf_counter() - start, found


def main() -> None:
    """Print the table."""
    print("| float16 | kernels | calls | first s | of it lowering | of it kernels | from the cache s |")
    print("|---|---|---|---|---|---|---|")
    for name in _MODELS:
        case = build(name, small=False)
        model = case.module.to(torch.float16)
        inputs = tree_map(lambda x: x.half() if x.is_floating_point() else x, case.inputs(0, 0))
        with tempfile.TemporaryDirectory() as folder:
            cache = Cache(Path(folder))
            first, built = timed(model, inputs, cache)
            again, _ = timed(model, inputs, cache)
        programs = [b.executable.program for b in built]
        kernels = len({spec for p in programs for spec in p.kernels})
        calls = sum(len(p.calls) for p in programs)
        lower, emit = (sum(b.report.seconds[phase] for b in built) for phase in ("lower", "emit"))
        print(f"| {name} | {kernels} | {calls} | {first:.1f} | {lower:.1f} | {emit:.1f} | {again:.1f} |", flush=True)


if __name__ == "__main__":
    main()
