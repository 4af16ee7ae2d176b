"""How the template fills vectors where the CPU decides: few columns by half vectors, and several taps of a depthwise window in a lane.

The rules are those of the template (`compiler/codegen/cpu/contraction`, ``form.in_halves`` and ``stacked``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec
from effc.costmodel.features.core import Core
from effc.costmodel.features.kinds import kind_of
from effc.costmodel.features.machine import usable
from effc.costmodel.features.nest import Sizes
from effc.costmodel.hardware import Hardware

#: How many times as many multiply-adds as by half vectors are too many by whole ones; vectors of weights of stacked taps at most.
_WASTED, _MOST_WEIGHTS = 1.1, 28
#: What takes longer than an instruction, beside functions that are none.
_INSTRUCTIONS = ("math.sqrt", "math.rsqrt")
_DIVISIONS = (
    "arith.divsi",
    "arith.divui",
    "arith.remsi",
    "arith.remui",
    "arith.floordivsi",
    "arith.ceildivsi",
    "arith.remf",
)
#: Products that one instruction sums, and the set that has it, by dtypes of the factors and the sum.
_TOGETHER: Mapping[tuple[str, ...], tuple[int, str]] = {
    ("bf16", "bf16", "f32"): (2, "avx512_bf16"),
    ("i8", "i8", "i32"): (4, "avx512_vnni"),
}


@dataclass(frozen=True)
class Lanes:
    """``lanes``: sums of a vector; ``halved``: whether vectors are half as wide as the CPU's; ``stacked``: taps that a lane holds, 1 in any
    other product; ``steps`` of the sum, of each vector, where they are stacked.
    """

    lanes: int
    halved: bool = False
    stacked: int = 1
    steps: int = 0

    @staticmethod
    def of(spec: KernelSpec, sizes: Sizes, hardware: Hardware, wise: bool) -> Lanes:
        """Of a kernel's main stage."""
        if not sizes.factors:
            return Lanes(max(hardware.vector_bytes // ITEM_SIZE["f32"], 1))
        summed = next(i.dtype for i in spec.body if i.op == "contract")
        lanes = max(hardware.vector_bytes // max(ITEM_SIZE[summed], 4), 1)
        if _in_halves(spec, sizes, hardware, wise, summed):
            return Lanes(lanes // 2, halved=True)
        taps = _stacked(spec, sizes, hardware, summed) if wise else 0
        if taps:
            down, along = sizes.summed
            steps = along * -(-down // taps)
            if steps <= _MOST_WEIGHTS:
                return Lanes(lanes, stacked=taps, steps=steps)
        return Lanes(lanes)


def _in_halves(spec: KernelSpec, sizes: Sizes, hardware: Hardware, wise: bool, summed: str) -> bool:
    """Whether few columns come in half vectors, two of which cost no more than a whole one."""
    lanes = hardware.vector_bytes // ITEM_SIZE["f32"]
    fills = 2 * -(-sizes.columns // lanes) <= _WASTED * -(-sizes.columns // max(lanes // 2, 1))
    if fills or not Core.of(hardware).pairs_halves or wise or not sizes.packed:
        return False
    if (*sizes.factors, summed) != ("f32",) * 3:
        return False
    return not any(
        instr.op in _DIVISIONS or (kind_of(instr) == "math" and instr.op not in _INSTRUCTIONS) for instr in spec.body
    )


def _stacked(spec: KernelSpec, sizes: Sizes, hardware: Hardware, summed: str) -> int:
    """Taps of one channel whose products an instruction sums; 0: none does, or the window is not of two known dimensions."""
    low, named = _TOGETHER.get((*sizes.factors, summed), (0, ""))
    if not low or not usable(hardware, named) or (low == 2 and usable(hardware, "amx_bf16")):
        return 0
    reduced = [d for d in spec.dims if d.kind != "parallel" and d.size.constant != 1]
    return low if sizes.packed and len(reduced) == len(sizes.summed) == 2 and not spec.symbols else 0
