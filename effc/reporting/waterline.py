"""Waterline analysis: which kernels of a model are bound by memory, and what a model gains where blocks of them become one kernel.

The roofline (see `costmodel.roofline`) is about one kernel. Lavin, "On the Efficiency of Convolutional Neural Networks", arXiv 2404.03617
(2024), takes a sequence of them: one that does fewer operations a byte than the machine can is under water, and no other kernel of
the sequence makes up for it. Kernels one after the other take at least the sum, a block of them in one kernel the maximum of sums::

    apart    sum over kernels of max(operations / peak, bytes / bandwidth)
    fused    max(sum of operations / peak, bytes of what enters and leaves the block / bandwidth)

Weights enter, and results that only the block itself reads do not leave. The two formulas are how we write it, and the following is ours.
Bytes count at the bandwidth of the level of memory where they are: the nearest that holds the reuse distance (see
`costmodel.traffic`); times of several levels add up. What is written moves twice, for a cache fetches a line before it is written to.
Arithmetic is all that kernels do, not products alone; halos that a fused kernel computes again are not in it. Blocks, where nobody
says which, are found by their shortcuts (`residual_blocks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from effc.compiler.ir.errors import InputError
from effc.costmodel.traffic import Layer, Touch
from effc.reporting.bounds import Roof, Stretch
from effc.reporting.waterline_plot import svg

#: Of a block that is looked for: kernels that read its input, and kernels in all.
_READERS, _LAYERS = 6, 16


@dataclass(frozen=True)
class Waterline:
    """``layers``: each kernel; ``blocks``: the same with some of them together; ``least``: seconds at least of all as one kernel. ``str``
    is a table.
    """

    roof: Roof
    layers: tuple[Stretch, ...]
    blocks: tuple[Stretch, ...]
    least: float

    @property
    def apart(self) -> float:
        """Seconds at least, kernel by kernel."""
        return sum(s.attainable for s in self.layers)

    @property
    def fused(self) -> float:
        """Seconds at least, block by block."""
        return sum(s.attainable for s in self.blocks)

    @property
    def ceiling(self) -> float:
        """How many times faster fusing the blocks can make what is at its bound; 1 where there is nothing to do."""
        return self.apart / self.fused if self.fused else 1.0

    @property
    def limit(self) -> float:
        """The ceiling of all layers as one kernel, which no choice of blocks exceeds; 1 where there is nothing to do."""
        return self.apart / self.least if self.least else 1.0

    @property
    def measured(self) -> float | None:
        """Seconds of all kernels; None where one was not measured."""
        seconds = [s.measured for s in self.layers]
        return sum(s for s in seconds if s is not None) if all(s is not None for s in seconds) and seconds else None

    def to_svg(self, path: str | PathLike[str], title: str = "waterline") -> None:
        """Write the picture that `waterline_plot` describes."""
        Path(path).write_text(svg(self, title), encoding="utf-8")

    def __str__(self) -> str:
        levels = ", ".join(f"{level.name} {level.bandwidth / 1e9:.3g} GB/s" for level in self.roof.levels)
        lines = [
            f"peak {self.roof.peak / 1e9:.3g} GFLOP/s, {levels}; ridge at {self.roof.ridge(self.roof.levels[-1]):.3g}"
        ]
        lines.append(
            f"{'kernels':>9} {'ops':>8} {'bytes':>8} {'ops/byte':>9} {'us apart':>9} {'us fused':>9} {'measured':>9}  bound"
        )
        for block in self.blocks:
            own = self.layers[block.first : block.end]
            lines.append(_row(block, sum(s.attainable for s in own)))
            if len(own) > 1:
                lines += [_row(s, s.attainable, inside=True) for s in own]
        lines.append(
            f"at least {1e6 * self.apart:.1f} us kernel by kernel, {1e6 * self.fused:.1f} block by block: ceiling {self.ceiling:.2f}; "
            f"{1e6 * self.least:.1f} all as one: {self.limit:.2f}"
        )
        return "\n".join(lines)


def _row(s: Stretch, apart: float, inside: bool = False) -> str:
    number = f"{s.first}" if s.end - s.first == 1 else f"{s.first}-{s.end - 1}"
    fused = "" if inside else f"{1e6 * s.attainable:.1f}"
    measured = "" if s.measured is None else f"{1e6 * s.measured:.1f}"
    place = f"{s.name} {s.location}".strip()
    return (
        f"{number:>9} {s.operations:8.2e} {s.bytes:8.2e} {s.intensity:9.3g} {1e6 * apart:9.1f} {fused:>9} {measured:>9}  "
        f"{'memory' if s.is_under_water else 'compute'}  {place}"
    )


def analyze(layers: Sequence[Layer], roof: Roof, blocks: Sequence[tuple[int, int]] | None = None) -> Waterline:
    """The analysis of ``layers`` on a machine. ``blocks``: of each the first layer and the one after its last, in order, by default
    `residual_blocks`; other layers stay alone. InputError: blocks that overlap, or reach beyond the layers.
    """
    ranges = residual_blocks(layers) if blocks is None else list(blocks)
    at = 0
    cover: list[tuple[int, int]] = []
    for first, end in ranges:
        if not at <= first < end <= len(layers):
            raise InputError(
                f"a block of layers {first} up to {end}: blocks are given in order, do not overlap, and lie among the "
                f"{len(layers)} layers"
            )
        cover += [*((i, i + 1) for i in range(at, first)), (first, end)]
        at = end
    cover += [(i, i + 1) for i in range(at, len(layers))]
    alone = tuple(_stretch(layers, i, i + 1, roof) for i in range(len(layers)))
    together = tuple(_stretch(layers, first, end, roof) for first, end in cover)
    least = _stretch(layers, 0, len(layers), roof).attainable if layers else 0.0
    return Waterline(roof, alone, together, least)


def _stretch(layers: Sequence[Layer], first: int, end: int, roof: Roof) -> Stretch:
    inside = layers[first:end]
    seconds = [layer.seconds for layer in inside if layer.seconds is not None]
    traffic = traffic_of(inside, roof)
    names = dict.fromkeys(layer.name for layer in inside)
    return Stretch(
        name=", ".join(names),
        location=inside[-1].location,
        first=first,
        end=end,
        operations=sum(layer.operations for layer in inside),
        traffic=traffic,
        compute=sum(layer.operations / layer.rate for layer in inside) / roof.peak,
        memory=sum(n / level.bandwidth for n, level in zip(traffic, roof.levels, strict=True)),
        measured=sum(seconds) if len(seconds) == len(inside) else None,
    )


def traffic_of(layers: Sequence[Layer], roof: Roof) -> tuple[int, ...]:
    """Bytes that one kernel of all the layers moves at each level: what is read before one of them has written it, once, from where it is
    since its last use; what is kept after them, once, to where its next use finds it; and the latter's lines on their way in.
    """
    first: dict[int, Touch] = {}
    last: dict[int, Touch] = {}
    read: dict[int, int] = {}
    written: dict[int, int] = {}
    for touch in (t for layer in layers for t in layer.touches):
        first.setdefault(touch.piece, touch)
        last[touch.piece] = touch
        if touch.piece not in written:
            read[touch.piece] = max(read.get(touch.piece, 0), touch.read)
        if touch.written:
            written[touch.piece] = max(written.get(touch.piece, 0), touch.written)
    found = [0] * len(roof.levels)
    for piece, amount in read.items():
        found[roof.level(first[piece].since)] += amount
    for piece, amount in written.items():
        if last[piece].kept:
            found[roof.level(last[piece].until)] += amount
            found[roof.level(first[piece].since)] += max(0, amount - read.get(piece, 0))
    return tuple(found)


def residual_blocks(layers: Sequence[Layer]) -> list[tuple[int, int]]:
    """Runs of layers from the first that reads a tensor to the last, extended until nothing but the last one's result leaves: a block and
    its shortcut. Of runs that overlap the longest, so that squeeze-excitation is part of its block, but none that a whole model could be:
    over a tensor that more than `_READERS` layers read (a mask), or of more than `_LAYERS` layers.
    """
    readers: dict[int, list[int]] = {}
    for i, layer in enumerate(layers):
        for source in layer.sources:
            readers.setdefault(source, []).append(i)
    leaves = [  # the last layer that reads the result; behind all layers where the model returns it
        len(layers) if layer.is_result else max(readers.get(i, [i])) for i, layer in enumerate(layers)
    ]
    candidates = []
    for found in readers.values():
        first, last, i = found[0], found[-1], found[0]
        while i < last < len(layers):
            last, i = max(last, leaves[i]), i + 1
        if first < last < len(layers) and len(found) <= _READERS and last - first < _LAYERS:
            candidates.append((first, last + 1))
    chosen: list[tuple[int, int]] = []
    for first, end in sorted(candidates, key=lambda run: (run[0] - run[1], run)):
        if all(end <= a or b <= first for a, b in chosen):
            chosen.append((first, end))
    return sorted(chosen)
