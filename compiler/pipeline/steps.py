"""The kernels of a region in the order in which they run.

A *step* makes one kernel: of a fused group, of a copy that placement asked for, or of a border that ``pad`` fills. Steps are ordered by
what they read and write, and among those that could run, by the order of the user's program.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr, const
from effc.compiler.pipeline.fused import fused_kernel, tensor_index
from effc.compiler.pipeline.fusion import Fusion, Group, is_free
from effc.compiler.pipeline.graph import Graph, Op, Tensor
from effc.compiler.pipeline.kernels import KernelBuilder
from effc.compiler.pipeline.placed import Kernel
from effc.compiler.pipeline.placement import Base, Layout, Placement
from effc.compiler.pipeline.special import build_special
from effc.compiler.pipeline.views import chain


@dataclass(eq=False)
class Step:
    """``build`` makes the kernel; ``reads`` are tensors in memory, ``writes`` the base written; ``after`` must run earlier."""

    priority: int
    build: Callable[[], Kernel]
    reads: set[Tensor]
    base: Base
    after: set[Step] = field(default_factory=set)


def order_steps(graph: Graph, fusion: Fusion, layout: Layout) -> list[Step]:
    """All steps of the region, in running order."""
    return _Planner(graph, fusion, layout).run()


class _Planner:
    def __init__(self, graph: Graph, fusion: Fusion, layout: Layout) -> None:
        self.graph, self.fusion, self.layout = graph, fusion, layout
        self.position = {op: i for i, op in enumerate(graph.ops)}
        self.steps: list[Step] = []
        self.writers: dict[Tensor, list[Step]] = {}  # of a tensor's own values (parts of an assembly: see _written_by)
        self.owned: dict[Op, list[Step]] = {}  # copies and fills that complete an assembly's result

    def run(self) -> list[Step]:
        for group in self.fusion.groups:
            self._group(group)
        for op in self.graph.ops:
            if is_free(op) and op.results[0] in self.layout.places:
                self._copy(op.results[0], self.layout.places[op.results[0]], None, stored=op.results[0])
            if op.kind == "pad" and op.results[0] in self.layout.places:
                self._border(op)
        for tensor, target in self.layout.stand_ins.items():
            self._copy(tensor, target, None, stored=tensor)
        for tensor, target, owner in self.layout.copies:
            self._copy(tensor, target, owner)
        self._connect()
        return _sorted(self.steps)

    # -- making steps -----------------------------------------------------------------------------------------------
    def _group(self, group: Group) -> None:
        stored = [t for op in group.ops for t in op.results if t in self.layout.places]
        if not stored:
            return
        reads = {
            root
            for op in group.ops
            for t in op.operands
            if (root := chain(t)[0]) in self.layout.places and root.producer not in group.coords
        }
        reads |= {t for op in group.ops for t in op.operands if t in self.layout.stand_ins}
        base = self.layout.places[stored[0]].base

        def build() -> Kernel:
            if group.kind not in ("loops", "contract", "conv"):
                return build_special(group.ops[0], self.layout)
            return fused_kernel(group, self.layout, stored)

        step = Step(max(self.position[op] for op in group.ops), build, reads, base)
        self.steps.append(step)
        for tensor in stored:
            self.writers.setdefault(tensor, []).append(step)

    def _copy(self, tensor: Tensor, target: Placement, owner: Op | None, stored: Tensor | None = None) -> None:
        root = chain(tensor)[0]
        computed = stored if target is self.layout.places.get(tensor) else None
        reads = {root} if root in self.layout.places and root is not computed else set()

        def build() -> Kernel:
            # the copy computes the value: it must not read what it is about to write
            places = {k: v for k, v in self.layout.places.items() if k is not computed}
            builder = KernelBuilder(Layout(places), tensor.sizes, frozenset())
            index = tensor_index(tensor)
            builder.store(builder.value(tensor, index), tensor, target, index)
            return builder.finish("loops", "copy", owner.location if owner else "")

        before = root.producer if root.producer in self.position else None
        priority = max(self.position[owner] if owner else -1, self.position[before] if before else -1)
        step = Step(priority if owner or stored else len(self.position), build, reads, target.base)
        self.steps.append(step)
        if owner is not None:
            step.after.update(self.owned.get(owner, []))
            self.owned.setdefault(owner, []).append(step)
        if stored is not None:
            self.writers.setdefault(stored, []).append(step)

    def _border(self, op: Op) -> None:
        """Steps that fill a pad's border; they touch nothing that the operand's own values occupy.

        Each call fills it anew: a border that stays needs memory that no other buffer uses, which fewer caches then hold (MobileNetV2
        took 1.09 of the time with borders that stay, EfficientNet-B0 1.17).
        """
        home, result, source = self.layout.places[op.results[0]], op.results[0], op.operands[0]
        low: tuple[Expr, ...] = op.attributes["low"]
        inside_low, inside_size = [const(0)] * len(low), list(result.sizes)
        for i, size in enumerate(source.sizes):
            after = low[i] + size
            high = result.sizes[i] - after
            sides = [(const(0), low[i]), (after, high)]
            for start, width in sides[:1] if low[i] == high else sides:
                if width.constant == 0:
                    continue
                starts, sizes, strides = list(inside_low), list(inside_size), list(home.strides)
                starts[i], sizes[i] = start, width
                if low[i] == high:  # both sides at once: one more dim, of size 2, steps from one to the other
                    sizes, strides = [const(2), *sizes], [after * home.strides[i], *strides]
                offset = home.offset + home.address(tuple(starts))
                self._fill(op, tuple(sizes), Placement(home.base, offset, tuple(strides)))
            inside_low[i], inside_size[i] = low[i], size

    def _fill(self, op: Op, sizes: tuple[Expr, ...], target: Placement) -> None:
        result = op.results[0]
        box = Tensor(f"{result.name}.border", result.dtype, sizes)
        index = tensor_index(box)

        def build() -> Kernel:
            builder = KernelBuilder(self.layout, sizes, frozenset())
            fill = Op("fill", [], [box], op.location, sizes, ("parallel",) * len(sizes), body=op.body)
            fill.result_maps = (index,)
            box.producer = fill
            builder.store(builder.value(box, index), box, target, index)
            return builder.finish("loops", "pad", op.location)

        step = Step(self.position[op], build, set(), target.base)
        self.steps.append(step)
        self.owned.setdefault(op, []).append(step)

    # -- order ------------------------------------------------------------------------------------------------------
    def _connect(self) -> None:
        for op, copies in self.owned.items():
            if op.kind == "scatter":
                for step in self.writers[op.results[0]]:
                    step.after.update(copies)
        for step in self.steps:
            for tensor in step.reads:
                step.after.update(s for s in self._written_by(tensor) if s is not step)
        readers: dict[int, list[Step]] = {}
        inputs = {source.tensor: i for i, source in enumerate(self.graph.inputs)}
        for step in self.steps:
            for tensor in step.reads:
                if tensor in inputs:
                    readers.setdefault(inputs[tensor], []).append(step)
        for step in self.steps:
            if step.base.kind == "input":
                step.after.update(s for s in readers.get(step.base.index, []) if s is not step)

    def _written_by(self, tensor: Tensor) -> list[Step]:
        found = list(self.writers.get(tensor, []))
        producer = tensor.producer
        if producer is not None and producer in self.owned:
            found += self.owned[producer]
        if producer is not None and producer.kind in ("pad", "concat", "insert"):
            home = self.layout.places[tensor]
            for operand in producer.operands:
                root = chain(operand)[0]
                place = self.layout.places.get(root)
                if place is not None and place.base == home.base:
                    found += self._written_by(root)
        return found


def _sorted(steps: Iterable[Step]) -> list[Step]:
    steps = list(steps)
    number = {step: i for i, step in enumerate(steps)}
    waiting = {step: len(step.after) for step in steps}
    followers: dict[Step, list[Step]] = {}
    for step in steps:
        for before in step.after:
            followers.setdefault(before, []).append(step)
    ready = [(s.priority, number[s]) for s in steps if not waiting[s]]
    heapq.heapify(ready)
    found: list[Step] = []
    while ready:
        step = steps[heapq.heappop(ready)[1]]
        found.append(step)
        for follower in followers.get(step, []):
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(ready, (follower.priority, number[follower]))
    if len(found) != len(steps):
        raise LoweringError("an update of an input is needed before its old value is read for the last time")
    return found
