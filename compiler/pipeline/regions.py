"""Regions: kernels that could be one, since others read a single thing of all that they write; residual blocks above all.

The regions of a program are a tree over its dataflow, as in Johnson, Pearson and Pingali ("The Program Structure Tree", 1994): at the top
runs, as long as can be, whose parts follow each other; a part is a kernel, or what lies between a value and the next one that all of it
flows into (its immediate post-dominator), and that has parts of its own. So of ::

    k0: conv       x  → a
    k1: conv       a  → b
    k2: depthwise  b  → c          [k0, [k1, k2, k3, with a skip], k4]
    k3: conv + a   c, a  → d
    k4: pool       d  → y

the whole is one region, the residual block a part of it, and [k1, k2], say, a region that ``shared`` of the ``Dataflow`` confirms. What is
not a layer (attention, a scan, dynamic sizes: `dataflow.is_layer`) parts the runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from effc.compiler.pipeline.dataflow import SUMS, Dataflow, Shared, Value, behind
from effc.compiler.pipeline.placed import Kernel
from effc.compiler.pipeline.placement import Base


@dataclass(frozen=True)
class Region:
    """``kernels``: positions in the program, in running order; together they may run where the last one does. Those that fill borders of
    what the others write are among them.

    ``inputs``, ``exit``, ``between``: see ``Shared``. ``skip``: whether what writes the exit adds the entry. ``parts``: the
    largest smaller regions, single kernels among them, in running order; none shares kernels with another, and a kernel that stores
    several things may be in none. None where all kernels but one fill.
    """

    kernels: tuple[int, ...]
    inputs: tuple[Base, ...]
    exit: Base
    between: tuple[Base, ...]
    skip: bool
    parts: tuple[Region, ...] = ()

    @property
    def entry(self) -> Base | None:
        """The activation that the first kernel reads first; None where it reads constants alone."""
        return self.inputs[0] if self.inputs else None

    def walk(self) -> Iterator[Region]:
        """This region, its parts and theirs: each before those inside it."""
        yield self
        for part in self.parts:
            yield from part.walk()


def find_regions(flow: Dataflow) -> list[Region]:
    """The largest regions of at least two kernels, in the order of their first ones; none shares kernels with another."""
    found = _Finder(flow).cover(range(len(flow.kernels)))
    return [region for region in found if len(region.kernels) > 1]


def make_region(flow: Dataflow, kernels: Sequence[int], parts: Sequence[Region] = ()) -> Region | None:
    """The region of ``kernels``, in running order; None where they are none."""
    shared = flow.shared(kernels)
    if shared is None:
        return None
    skip = any(_has_skip(flow.kernels[i], shared) for i in kernels if shared.exit in flow.writes[i])
    return Region(tuple(kernels), shared.inputs, shared.exit, shared.between, skip, tuple(parts))


class _Finder:
    def __init__(self, flow: Dataflow) -> None:
        self.flow = flow
        self.next_values = flow.next_values()

    def cover(self, allowed: Collection[int]) -> list[Region]:
        """Runs of ``allowed`` kernels, each as long as can be, in the order of their first ones."""
        free, found = set(allowed), list[Region]()
        for start in sorted(allowed):
            if start in free and not self.flow.fills(start):
                run = self._run(start, free)
                if run is not None:
                    found.append(run)
                    free.difference_update(run.kernels)
        return found

    def _run(self, start: int, free: Collection[int]) -> Region | None:
        """The longest run that begins with the kernel ``start``."""
        parts: list[Region] = []
        node: int | Value = start
        while node in self.next_values:
            value = self.next_values[node]
            step = self.flow.kernels_between(node, value)
            part = self._part(node, step) if set(free).issuperset(step) else None
            if part is None:
                break
            parts.append(part)
            node = value
        while parts:
            kernels = [i for part in parts for i in part.kernels]
            whole = parts[0] if len(parts) == 1 else make_region(self.flow, kernels, self._with_prefix(parts))
            if whole is not None:
                return whole
            parts.pop()
        return None

    def _part(self, node: int | Value, kernels: Sequence[int]) -> Region | None:
        """What lies between ``node`` and the next value. A kernel there that stores several things is no smaller part."""
        whole = make_region(self.flow, kernels)
        if whole is None or sum(not self.flow.fills(i) for i in kernels) == 1:
            return whole
        inner = self.cover([i for i in kernels if i != node])
        found = inner[0].parts if [part.kernels for part in inner] == [whole.kernels] else tuple(inner)
        return replace(whole, parts=found)

    def _with_prefix(self, parts: Sequence[Region]) -> Sequence[Region]:
        """``parts`` of a run, the first few as one if they add what the run begins with: others may read that too, so that not all of it
        flows to where they add it.
        """
        entry = parts[0].entry
        for end in range(len(parts) - 1, 1, -1):
            if any(entry in self.flow.reads[i] for i in parts[end - 1].kernels):
                block = make_region(self.flow, [i for part in parts[:end] for i in part.kernels], parts[:end])
                if block is not None and block.skip:
                    return [block, *parts[end:]]
        return parts


def _has_skip(last: Kernel, shared: Shared) -> bool:
    """Whether the kernel ``last`` adds the entry, element by element, to something that is summed or comes from ``between``."""
    entry = {i for i, site in enumerate(last.sites) if site.base in shared.inputs[:1]}
    inside = {i for i, site in enumerate(last.sites) if site.base in shared.between}
    body = last.spec.body
    for instr in body:
        for added, other in (instr.args, instr.args[::-1]) if instr.op == "arith.addf" else ():
            computed = any(
                body[i].op in SUMS or (body[i].op == "load" and body[i]["operand"] in inside)
                for i in behind(body, other)
            )
            loaded = {body[i]["operand"] for i in behind(body, added, without=SUMS) if body[i].op == "load"}
            if computed and loaded & entry:
                return True
    return False
