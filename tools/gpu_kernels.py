"""The table of docs/gpu.md: what triton makes of kernels of real sizes, and their error in the interpreter at small ones.

    PYTHONPATH=tests python -P tools/gpu_kernels.py

Needs triton, and neither a GPU nor a driver. Seconds are of the processor, of this process and what it starts, without triton's cache.
"""

from __future__ import annotations

import os

from gpu_cases import CASES, GpuCase, attended
from gpu_interpreted import SM80, SM90, TMA, Kernel, operands_of

from effc.compiler.capture.kernel_reference import evaluate
from effc.compiler.codegen.gpu.compile import compile_launch
from effc.compiler.codegen.gpu.occupancy import resident_blocks
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.runtime.nibbles import pack_nibbles

_HEAD = (
    "kernel",
    "GPU",
    "launches",
    "warps",
    "registers",
    "frame",
    "shared bytes",
    "blocks",
    "multiplies by",
    "emit s",
    "compile s",
    "error",
)


def row(case: GpuCase, target: GpuTarget) -> tuple[str, ...]:
    """A line of the table, of the first launch but for the seconds, which are of all."""
    start = _seconds()
    launches = Kernel(case.spec, target).emitted.launches
    emitted = _seconds()
    made = [compile_launch(launch, target) for launch in launches]
    done = _seconds()
    first = made[0]
    found = [name for name in ("wgmma", "mma.sync") if name in first.ptx]
    return (
        case.name,
        f"sm_{target.capability}{', TMA' if target.descriptors else ''}",
        str(len(made)),
        str(first.warps),
        str(first.registers),
        str(max(m.frame for m in made)),
        str(first.shared),
        str(resident_blocks(target, first.warps, first.registers, first.shared)),
        found[0] if found else "–",
        f"{emitted - start:.2f}",
        f"{done - emitted:.2f}",
        f"{error(case, target):.1e}",
    )


def _seconds() -> float:
    return sum(os.times()[:4])


def error(case: GpuCase, target: GpuTarget) -> float:
    """Relative L2 of the small kernel's result in the interpreter, against float64."""
    spec = case.small
    tensors = operands_of(spec)
    expected = evaluate(spec, [t.clone() for t in tensors], (), wide=True)
    for i, operand in enumerate(spec.operands):
        if operand.role == "packed":
            tensors[i] = pack_nibbles(tensors[i], 0, len(tensors[i]))
    written = next(i for i, o in enumerate(spec.operands) if o.role == "write")
    want = attended(spec, tensors) if expected is None else expected[written]
    assert Kernel(spec, target)(tensors) == 0
    return float((tensors[written].double() - want).norm() / want.double().norm())


def main() -> None:
    """Print the table."""
    print(f"| {' | '.join(_HEAD)} |\n|{'---|' * len(_HEAD)}")
    for case in CASES:
        for target in (SM80, SM90, TMA):
            if not target.descriptors or "tt.make_tensor_descriptor" in Kernel(case.spec, target).text:
                print(f"| {' | '.join(row(case, target))} |", flush=True)


if __name__ == "__main__":
    main()
