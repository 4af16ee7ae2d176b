"""Where the time of a model goes: every kernel call, with its share of the machine's peak and bandwidth.

    python tools/kernel_times.py --models resnet50 --threads 2 --top 30

Kernels are called one by one from Python; printed is the median over the rounds of each. Their sum leaves out what lies between
calls, and a kernel finds in the caches what the one before it left there, as in a whole run.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from effc.apart import compiled_apart
from effc.bench.runner import Subject
from effc.bench.systems.quantized import quantize
from effc.bench.systems.system import cast
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import ITEM_SIZE
from effc.costmodel.hardware import Speed
from effc.kernel_clock import KernelClock
from effc.speed import Probe


def profile(name: str, rounds: int, dtype: str) -> KernelClock:
    """``rounds`` calls of the model after three that are not timed; int8 is that of ``effc bench``."""
    subject = Subject("model", name)
    module, inputs = subject.build()
    if dtype == "int8":
        module = quantize(module, inputs, subject.calibration())
    else:
        module, inputs = cast(module, inputs, getattr(torch, dtype))
    clock = KernelClock()
    compiled = compiled_apart(module, Options(), clock.builder)
    with torch.no_grad():
        for _ in range(3):
            compiled(*inputs)
        with clock.running():
            for _ in range(rounds):
                compiled(*inputs)
    return clock


def table(clock: KernelClock, speed: Speed, top: int) -> str:
    """The ``top`` calls by time, and the sum of all."""
    medians = {key: statistics.median(seconds) for key, seconds in clock.seconds.items()}
    total, lines = sum(medians.values()), []
    for key in sorted(medians, key=lambda k: -medians[k])[:top]:
        step, seconds = clock.steps[key], medians[key]
        known = dict(zip(step.kernel.symbols, step.symbols, strict=True))
        bytes_ = sum(o.size.evaluate(known) * ITEM_SIZE[o.dtype] for o in step.kernel.operands if o.role != "scratch")
        sizes = [d.size.evaluate(known) for d in step.kernel.dims]
        work = step.call.flops.constant or 0
        schedule = " ".join(f"{k}={v}" for k, v in step.kernel.schedule.parameters)
        lines.append(
            f"{1e6 * seconds:8.0f} us {seconds / total:5.1%}  {work / seconds / speed.flops:5.0%} of peak "
            f"{bytes_ / seconds / speed.bandwidth:5.0%} of bandwidth  #{step.number} {step.call.name} "
            f"{'x'.join(map(str, sizes))} [{schedule}] {step.call.location}"
        )
    return "\n".join([*lines, f"{1e3 * total:.2f} ms in {len(medians)} calls"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, help="by commas, names of effc bench")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--top", type=int, default=25, help="calls to show")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    speed = Probe(Target.host()).speed(args.threads, 20)
    print(f"peak {speed.flops / 1e9:.0f} GFLOP/s in float32, read {speed.bandwidth / 1e9:.1f} GB/s")
    for name in args.models.split(","):
        print(f"{name}\n{table(profile(name, args.rounds, args.dtype), speed, args.top)}", flush=True)


if __name__ == "__main__":
    main()
