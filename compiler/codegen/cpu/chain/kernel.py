"""The kernel of a chain: each thread takes blocks of rows through all stages.

A stage is the contraction's own kernel, as a function over a range of its units. Rows are outside, so the units of a run of row tiles
are a range. A thread's scratch memory holds one block of each intermediate; a stage sees it moved back by the rows before the block, so
that the addresses of the spec hold.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.access import memory_type
from effc.compiler.codegen.cpu.chain.plan import MOST_THREADS, Link, Plan
from effc.compiler.codegen.cpu.contraction.amx import AmxKernel
from effc.compiler.codegen.cpu.contraction.form import form
from effc.compiler.codegen.cpu.contraction.kernel import Kernel
from effc.compiler.codegen.cpu.contraction.shape import Shape
from effc.compiler.codegen.cpu.emit import kernel_name
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import I64, PTR, Builder, Value
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.expr import const
from effc.compiler.ir.spec import KernelSpec

_KERNELS: dict[str, type[Kernel]] = {"tiles": Kernel, "amx": AmxKernel}


class ChainKernel:
    """Emits ``spec``, of which ``plan`` holds the parts and sizes."""

    def __init__(self, spec: KernelSpec, plan: Plan, target: Target) -> None:
        self.spec, self.plan = spec, plan
        self.b = Builder()
        self.stages = [
            _KERNELS[form(nest, target)](nest, Shape.of(stage, nest, stage.schedule, target), target, self.b)
            for stage, nest in zip(spec.stages, plan.nests, strict=True)
        ]

    def text(self) -> str:
        for number in range(len(self.stages)):
            self._stage(number)
        cycles = sum((s.unit_cycles() * s.panels() for s in self.stages), const(0))
        with parallel_kernel(self.b, self.spec, self.stages[0].row_tiles(), cycles, most=MOST_THREADS) as share:
            self._blocks(share)
        return self.b.text()

    def _stage(self, number: int) -> None:
        """A function ``(slots, first unit, end, a pointer an intermediate)``."""
        b, links = self.b, self.plan.links
        arguments = [PTR, I64, I64, *[PTR] * len(links)]
        with b.function(self._name(number), arguments, private=True) as (slots, lo, hi, *pointers):
            share = Share(b, self.spec.stages[number], slots, lo, hi, b.index(0), slots)
            share.load_slots()
            for link, pointer in zip(links, pointers, strict=True):
                share.place(link.operand, pointer)
            self.stages[number].body(share)

    def _name(self, number: int) -> str:
        return f"{kernel_name(self.spec)}_stage{number}"

    def _blocks(self, share: Share) -> None:
        """Tiles ``[share.lo, share.hi)`` of rows, a block at a time."""
        b, plan = self.b, self.plan
        homes = [self._home(share, link) for link in plan.links]
        with b.loop(share.lo, share.hi, plan.tiles) as loop:
            end, row = b.minimum(b.add(loop.index, plan.tiles), share.hi), self.stages[0].row_of(share, loop.index)
            pointers = [
                b.element_pointer(home, b.sub(b.index(0), b.mul(row, link.stride)), self._element(link))
                for link, home in zip(plan.links, homes, strict=True)
            ]
            for number, stage in enumerate(self.stages):
                panels = stage.panels().constant
                assert panels is not None, "a packed factor has known sizes"
                self._call(number, share.slots, [b.mul(loop.index, panels), b.mul(end, panels), *pointers])

    def _home(self, share: Share, link: Link) -> Value:
        """Where a thread's first row of an intermediate lies."""
        b, plan = self.b, self.plan
        offset = b.add(b.mul(share.index, plan.share_elements(link)), plan.spare * link.stride)
        return b.element_pointer(share.pointer(link.operand), offset, self._element(link))

    def _element(self, link: Link) -> str:
        return memory_type(self.spec.operands[link.operand].dtype)

    def _call(self, number: int, slots: Value, arguments: list[Value]) -> None:
        given = [slots, *arguments]
        types = ", ".join(a.type for a in given)
        self.b.line(f"llvm.call @{self._name(number)}({', '.join(a.name for a in given)}) : ({types}) -> ()")
