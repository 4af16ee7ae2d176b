"""Which contractions are convolutions that Winograd's method computes, and their parts.

F(2x2, 3x3): a tile of 2x2 outputs needs 16 products a channel instead of 36 (Lavin and Gray, "Fast algorithms for convolutional
neural networks", CVPR 2016; Winograd, "Arithmetic complexity of computations", 1980). The window is that of the two innermost
spatial dimensions; taps of further dimensions (the depth of a 3-D convolution) are summed like channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.roles import find as find_nest
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import KernelSpec

#: Taps a side, and outputs a side of a tile.
TAPS, OUTPUTS = 3, 2
#: Elements a side of the input that a tile reads, and of its transforms.
SIDE = TAPS + OUTPUTS - 1


@dataclass(frozen=True)
class Form:
    """``nest``: the contraction with no dims merged; its row is the window's inner dim and its column the output channel.

    ``height``/``width``: (parallel dim, tap dim) of the window. ``groups``: parallel dims, of known sizes, each with a kernel of its own.
    ``outer``: the other parallel dims. ``channels``: the other reduction dims, of known sizes; the last is contiguous in the input.
    """

    nest: Nest
    height: tuple[int, int]
    width: tuple[int, int]
    groups: tuple[int, ...]
    outer: tuple[int, ...]
    channels: tuple[int, ...]

    @property
    def depth(self) -> int:
        """How many products each of the 16 sums has."""
        total = 1
        for k in self.channels:
            total *= self.nest.size(k).constant or 1
        return total

    @property
    def group_count(self) -> int:
        return prod(self.nest.size(i).constant or 1 for i in self.groups)

    def input_stride(self, dim: int) -> Expr:
        return self.nest.stride(self.nest.left.load, dim)


def find(spec: KernelSpec, target: Target) -> Form | str:
    """The parts of ``spec``, whose constant factor is packed, or the reason why Winograd's method does not serve."""
    nest = find_nest(spec, merge=False)
    if isinstance(nest, str):
        return nest
    if target.vector_bytes < 32:
        return "it needs fused multiply-adds"
    sides = (nest.left, nest.right)
    if any(nest.spec.operands[s.operand].dtype != "f32" or s.chain for s in sides) or _accumulator(nest) != "f32":
        return "only float32"
    if not nest.right.packed:
        return "the kernel is not constant"
    if nest.borders:
        return "a border of zeros that lies nowhere in memory"
    if nest.wise or nest.column is None:
        return "a depthwise convolution"
    pairs = _windows(nest)
    if len(pairs) < 2:
        return f"not two dimensions with {TAPS} taps at stride 1, without dilation"
    order = nest.reduction.index
    height, width = sorted(pairs, key=lambda pair: order(pair[1]))[-2:]
    channels = tuple(k for k in nest.reduction if k not in (height[1], width[1]))
    lanes = target.lanes(4)
    sizes = [nest.size(k).constant for k in channels]
    if not channels or None in sizes or nest.stride(nest.left.load, channels[-1]).constant != 1:
        return "the input's channels are not contiguous"
    if sizes[-1] is None or sizes[-1] % lanes:
        return f"the input's channels do not fill vectors of {lanes}"
    if any(_factor(nest, i, nest.column) != 1 for i, instr in enumerate(nest.spec.body) if instr.op == "store"):
        return "the result's channels are not contiguous"
    outer = tuple(
        i
        for i, dim in enumerate(nest.spec.dims)
        if dim.kind == "parallel" and i not in (height[0], width[0], nest.column, *nest.batch)
    )
    nest = replace(nest, row=width[0], outer=(*nest.batch, *outer, height[0]))
    return Form(nest, height, width, nest.batch, outer, channels)


def _accumulator(nest: Nest) -> str:
    return nest.spec.body[nest.contract].dtype


def _windows(nest: Nest) -> list[tuple[int, int]]:
    """(place, tap) dims of 3 taps where the window moves and reaches by the same step."""
    address = nest.address(nest.left.load)
    found: list[tuple[int, int]] = []
    for tap in nest.reduction:
        if nest.size(tap).constant != TAPS:
            continue
        step = address.coefficient(f"d{tap}")
        places = [
            i
            for i, dim in enumerate(nest.spec.dims)
            if dim.kind == "parallel" and step is not None and step.terms and address.coefficient(f"d{i}") == step
        ]
        if len(places) == 1 and places[0] != nest.column:
            found.append((places[0], tap))
    return found


def _factor(nest: Nest, instr: int, dim: int) -> int | None:
    found = nest.address(instr).coefficient(f"d{dim}")
    return None if found is None else found.constant
