"""A decode step with quantized weights against its own float weights: torchao's int8 and int4 (groups of 64), through effc.

    python tools/quantized_decode.py --model llama_decode --threads 2

All are called in turn in one process. Printed: medians, how many times faster than float weights, and the packed weights' bytes over
the time as a share of the read bandwidth, measured in the same rounds. Needs the package torchao.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import zoo
from torch import nn

from effc.compiler.codegen.cpu.target import Target
from effc.speed import Probe

#: Bits of a weight, scales included: a float32 scale a channel of 576 or more, and one for each 64 codes.
BITS = {"float": 32.0, "int8": 8.06, "int4": 4.5}


def quantized(module: nn.Module, kind: str) -> nn.Module:
    """A copy with the weights of its linears quantized by torchao."""
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

    found = copy.deepcopy(module)
    if kind != "float":
        int4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(64))  # type: ignore[attr-defined]
        quantize_(found, Int8WeightOnlyConfig() if kind == "int8" else int4)
    return found


def seconds(call: Callable[[], Any], at_least: float) -> float:
    """Of one call: the mean of as many as fill ``at_least`` seconds, after as many that are not timed."""
    for timed in (False, True):
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < at_least:
            call()
            count += 1
        if timed:
            return (time.perf_counter() - started) / count
    raise AssertionError("the second pass is timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama_decode")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    case, probe = zoo.build(args.model, small=False), Probe(Target.host())
    inputs = case.inputs(0, 0)
    linears = sum(m.weight.numel() for m in case.module.modules() if isinstance(m, nn.Linear))
    times: dict[str, list[float]] = {kind: [] for kind in BITS}
    bandwidths = []
    with torch.no_grad():
        calls = {kind: torch.compile(quantized(case.module, kind), backend="effc") for kind in BITS}
        reference = case.module(*copy.deepcopy(inputs))
        for kind, call in calls.items():
            result = call(*copy.deepcopy(inputs))
            y, x = (t[0] if isinstance(t, tuple) else t for t in (result, reference))
            print(f"{kind}: relative L2 distance to the float model {float((y - x).norm() / x.norm()):.3g}", flush=True)
        for _ in range(args.rounds):
            bandwidths.append(probe.speed(args.threads, 6).bandwidth)
            for kind, call in calls.items():
                times[kind].append(seconds(partial(call, *inputs), 0.1))
    bandwidth = statistics.median(bandwidths)
    print(f"{linears / 1e6:.0f} M weights of linears, read {bandwidth / 1e9:.1f} GB/s")
    for kind, found in times.items():
        ratios = sorted(a / b for a, b in zip(times["float"], found, strict=True))
        median, fifth = statistics.median(found), len(ratios) // 5
        share = linears * BITS[kind] / 8 / median / bandwidth
        print(
            f"{kind:6} {1e3 * median:7.2f} ms  {statistics.median(ratios):.2f}x ({ratios[fifth]:.2f}-{ratios[-1 - fifth]:.2f})  "
            f"{share:.0%} of the read bandwidth"
        )


if __name__ == "__main__":
    main()
