"""The roofline: a kernel takes at least as long as its arithmetic at the machine's peak, and as its bytes at the bandwidth.

``latency = max(operations / peak, bytes / bandwidth) + overhead`` (Williams, Waterman, Patterson: "Roofline: an insightful
visual performance model for multicore architectures", CACM 52(4), 2009). It knows nothing of schedules: those of one kernel
get one price, and the template's own choice, which comes first, is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod

from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.spec import ITEM_SIZE, Instr, KernelSpec
from effc.costmodel.hardware import Hardware

#: Seconds of one kernel's call and one parallel region of torch's pool, measured at 0.8–0.9 us.
OVERHEAD = 1e-6
#: Half the width of the likely range. Of 105 kernels of a ResNet-50 and a MiniLM that take over 50 us, on two cores of Zen 5, four in five
#: took 1.2 to 2 times the bound (the median 1.4; the range 0.8 to 3.4): a roof says little, and only large gains are sure.
UNCERTAINTY = 1.0
#: Float32 operations that one function of `math` or of libm costs: a polynomial of about ten terms, with range reduction.
_MATH = 20
#: Speed of a dtype's multiply-adds against float32's: by the width of its vectors, and by instructions for it where there are.
_RATE: Mapping[str, float] = {"f64": 0.5, "i64": 0.5}
_NATIVE: Mapping[str, Mapping[str, float]] = {
    "bf16": {"amx_bf16": 16.0, "avx512_bf16": 2.0},
    "f16": {"avx512_fp16": 2.0},
    "i8": {"avx512_vnni": 4.0},
}


def latency(spec: KernelSpec, symbols: Sequence[int], hardware: Hardware) -> Latency:
    """Predicted time of one call with these values of the spec's symbols."""
    known = dict(zip(spec.symbols, symbols, strict=True))
    compute = weighted(spec, known, hardware.isa) / hardware.speed.flops
    memory = bytes_touched(spec, known) / hardware.speed.bandwidth
    return Latency(max(compute, memory) + OVERHEAD, UNCERTAINTY)


def operations(spec: KernelSpec, known: Mapping[str, int]) -> int:
    """Arithmetic of the whole loop nest; a multiply-add counts as two, a transcendental function as `_MATH`, and nothing what addresses and
    masks are made of: 64-bit integers and truth values.
    """
    if spec.template == "attention":
        return _attention(spec, known)
    if spec.stages:
        return sum(operations(stage, known) for stage in spec.stages)
    sizes = [d.size.evaluate(known) for d in spec.dims]
    total = 0
    for instr, level in zip(spec.body, spec.levels(), strict=True):
        inner = instr.op in ("reduce", "contract")  # of the outer level, but it runs at every point
        total += cost(instr) * prod(sizes if inner else sizes[:level])
    return total


def weighted(spec: KernelSpec, known: Mapping[str, int], isa: Collection[str]) -> float:
    """Operations, each divided by how many times faster than float32's those of its dtype are on a CPU with the flags ``isa``."""
    if spec.stages:
        return sum(weighted(stage, known, isa) for stage in spec.stages)
    return operations(spec, known) / rate(spec, isa)


def bytes_touched(spec: KernelSpec, known: Mapping[str, int]) -> int:
    """Bytes of all operands, each element once, or twice where it is updated in place: see `operand_bytes`."""
    each = operand_bytes(spec, known)
    return sum(2 * n if o.role == "readwrite" else n for o, n in zip(spec.operands, each, strict=True))


def operand_bytes(spec: KernelSpec, known: Mapping[str, int]) -> tuple[int, ...]:
    """Bytes of each operand, each element once: of one that is gathered from, or of which a border is written, what is accessed; of scratch
    memory none.
    """
    sizes = [d.size.evaluate(known) for d in spec.dims]
    accessed = [0] * len(spec.operands)
    for instr, level in zip(spec.body, spec.levels(), strict=True):
        if instr.op in ("load", "store"):
            accessed[instr["operand"]] += prod(sizes[:level])
    found = []
    for operand, count in zip(spec.operands, accessed, strict=True):
        size = operand.size.evaluate(known)
        touched = min(size, count) if spec.body else size
        found.append(0 if operand.role == "scratch" else ITEM_SIZE[operand.dtype] * touched)
    return tuple(found)


def cost(instr: Instr) -> int:
    """Operations of one instruction at one point."""
    if instr.op == "contract":
        return 2
    if instr.op.startswith(("math.", "libm.")):
        return _MATH
    computes = instr.op.startswith("arith.") and instr.dtype not in ("i64", "i1")
    return 1 if computes or instr.op == "reduce" else 0


def _attention(spec: KernelSpec, known: Mapping[str, int]) -> int:
    """Two products, and the softmax, of every query with every key."""
    batch, heads, queries, keys, channels, out_channels = (d.size.evaluate(known) for d in spec.dims)
    return batch * heads * queries * keys * (2 * (channels + out_channels) + 2 + _MATH)


def rate(spec: KernelSpec, isa: Collection[str]) -> float:
    """Speed of the dtype in which the kernel, or its first stage, computes, against float32's, on a CPU with the flags ``isa``."""
    if spec.stages:
        return rate(spec.stages[0], isa)
    contracts = [i for i in spec.body if i.op == "contract"]
    if not contracts:
        return min((_RATE.get(i.dtype, 1.0) for i in spec.body if i.dtype), default=1.0)
    read = spec.operands[0].dtype
    rates = [found for feature, found in _NATIVE.get(read, {}).items() if feature in isa]
    return max(rates, default=_RATE.get(contracts[0].dtype, 1.0))
