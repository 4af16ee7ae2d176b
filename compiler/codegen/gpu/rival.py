"""effc's products and those of NVIDIA's libraries, counted: for where neither can be measured, and to measure only what is close.

A product takes the longer of multiplying and of moving its factors and its result once. A library's is followed by a kernel of its
own for what effc's computes on the sums, which reads the result and writes it again.
"""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.gpu.target import GpuTarget

#: The share of the hardware's rates that a library's large products reach, and of those effc's with Triton's code. Assumed, not measured:
#: level before Hopper, and the least that effc means to reach from there on (docs/gpu.md).
_LIBRARY, _OURS, _OURS_FROM_HOPPER = 0.8, 1.0, 0.8
#: Bytes a cycle that a processor gets from memory, cycles a second, and seconds of one more launch.
_FAR_BYTES, _CLOCK, _LAUNCH = 12.0, 1.5e9, 2e-6


@dataclass(frozen=True)
class Work:
    """A product. ``flops``: operations, two a multiply-add. ``moved``: bytes of its factors and its result. ``read_again``: bytes that a
    library's kernels write and read again, as one of their own would the result behind a product; 0: it is one kernel. ``dtype``: of the
    factors, also ``"tf32"``.
    """

    flops: float
    moved: float
    read_again: float
    dtype: str


def counted(work: Work, target: GpuTarget) -> tuple[float, float]:
    """Seconds of effc's kernel, and of a library's product with the kernel that must follow it."""
    rate = target.hardware.rate(work.dtype)
    per_second = target.processors * _CLOCK
    multiplying = work.flops / (2 * rate * _LIBRARY * per_second)
    share = _OURS if target.capability < 90 else _OURS_FROM_HOPPER
    moving = work.moved / (_FAR_BYTES * per_second)
    after = 2 * work.read_again / (_FAR_BYTES * per_second) + _LAUNCH if work.read_again else 0.0
    return max(multiplying / share, moving), max(multiplying, moving) + after
