"""A band of an image in scratch memory, in planes of channels: so its pixels are one row, for each tap from another place on.

A stride divides an image into phases, one a remainder of each coordinate; each lies as an image of its own. Output ``(y, x)`` of a band
is number ``y * pitch + x``, and its input under a tap lies as many elements behind a place that depends on the tap alone. Numbers beyond
the width of a line are no outputs: they are computed, and not written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import ceil, gcd, prod

from effc.compiler.codegen.cpu.sparse.form import LINE, Form

#: Bytes of a band: it stays in L2.
BAND_BYTES = 384 * 1024
#: Phases of one coordinate, and steps of dilation, at most.
MOST_STEPS = 8


@dataclass(frozen=True)
class Axis:
    """One coordinate: ``outputs`` along dim ``place`` and ``taps`` along dim ``tap``; output number i meets the input at ``stride * i +
    dilation * tap``, in steps of ``unit`` elements of the dense factor.
    """

    place: int
    outputs: int
    taps: int
    stride: int
    dilation: int
    unit: int

    @property
    def reach(self) -> int:
        """From the input of the first tap to that of the last."""
        return self.dilation * (self.taps - 1)

    @property
    def phases(self) -> int:
        return min(self.stride, self.reach + 1)

    def lines(self, outputs: int) -> int:
        """Inputs of one phase that so many outputs meet."""
        return outputs + self.reach // self.stride

    def at(self, tap: int) -> tuple[int, int]:
        """Phase of a tap, and from which place on it lies there."""
        return self.dilation * tap % self.stride, self.dilation * tap // self.stride


@dataclass(frozen=True)
class Band:
    """``form``: its row is the width of the image, its other outer dims are neither width nor height. ``lines``: of outputs in a band."""

    form: Form
    height: Axis
    width: Axis
    lines: int

    @staticmethod
    def of(form: Form) -> Band | None:
        """The bands of a convolution in two dimensions; None for another, or one whose sizes are not known numbers."""
        nest = form.nest
        places = [
            i
            for i, dim in enumerate(nest.spec.dims)
            if dim.kind == "parallel" and nest.stride(nest.left.load, i).constant != 0
        ]
        if len(form.positions) != 2 or len(places) < 2:
            return None
        axes = [_axis(form, place, tap) for place, tap in zip(places[-2:], form.positions, strict=True)]
        height, width = axes
        if height is None or width is None:
            return None
        outer = tuple(i for i in (*nest.outer, nest.row) if i is not None and i not in (height.place, width.place))
        form = replace(form, nest=replace(nest, row=width.place, outer=outer))
        whole = Band(form, height, width, height.outputs)
        fitting = (n for n in range(height.outputs, 1, -1) if 4 * replace(whole, lines=n).elements <= BAND_BYTES)
        most = next(fitting, 1)
        return replace(whole, lines=ceil(height.outputs / ceil(height.outputs / most)))

    @property
    def count(self) -> int:
        return ceil(self.height.outputs / self.lines)

    @property
    def pitch(self) -> int:
        return self.width.lines(self.width.outputs)

    @property
    def phase(self) -> int:
        """Elements of a phase of one channel."""
        return self.height.lines(self.lines) * self.pitch

    @property
    def pixels(self) -> int:
        """Of all phases of one channel."""
        return self.height.phases * self.width.phases * self.phase

    @property
    def plane(self) -> int:
        """Elements from one channel to the next: an odd number of cache lines, so that they do not fall into few sets of L1."""
        return (ceil(self.pixels / LINE) | 1) * LINE

    @property
    def elements(self) -> int:
        return self.form.sizes[-1] * self.plane

    @property
    def outputs(self) -> int:
        """Numbers up to the last output of a band."""
        return (self.lines - 1) * self.pitch + self.width.outputs

    @property
    def taps(self) -> tuple[int, ...]:
        """Where each position of the window begins in a plane, row-major."""
        found = []
        for y, x in product(range(self.height.taps), range(self.width.taps)):
            (a, line), (c, column) = self.height.at(y), self.width.at(x)
            found.append((a * self.width.phases + c) * self.phase + line * self.pitch + column)
        return tuple(found)

    def near(self, outputs: int, parts: int) -> int:
        """Elements of the planes of one part of the sum that a tile of ``outputs`` meets."""
        halo = self.height.reach // self.height.stride * self.pitch + self.width.reach // self.width.stride
        phases = prod(axis.phases for axis in (self.height, self.width))
        return ceil(self.form.sizes[-1] / parts) * phases * (outputs + halo)


def _axis(form: Form, place: int, tap: int) -> Axis | None:
    nest = form.nest
    outputs, taps = nest.size(place).constant, nest.size(tap).constant
    step, reach = (nest.stride(nest.left.load, i).constant for i in (place, tap))
    if not (outputs and taps and step and reach):
        return None
    unit = gcd(step, reach)
    if max(step, reach) > MOST_STEPS * unit:
        return None
    return Axis(place, outputs, taps, step // unit, reach // unit, unit)
