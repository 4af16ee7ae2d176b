"""Numbers of the slots that a driver takes (the table in ``docs/architecture.md``): shared by the emitter and the runtime."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.ir.program import Program

GOMP_PARALLEL_SLOT, THREAD_NUM_SLOT, ERROR_SLOT, THREADS_SLOT = range(4)
HEADER_SLOTS = 4


@dataclass(frozen=True)
class Layout:
    """Index of every slot of ``effc_program``: header, arena, inputs, derived, outputs, symbols."""

    arena: int
    inputs: int
    derived: int
    outputs: int
    symbols: int
    count: int
    names: tuple[str, ...]

    @staticmethod
    def of(program: Program) -> Layout:
        inputs = HEADER_SLOTS + 1
        derived = inputs + len(program.inputs)
        outputs = derived + len(program.derived)
        symbols = outputs + len(program.outputs)
        count = symbols + len(program.symbols)
        return Layout(HEADER_SLOTS, inputs, derived, outputs, symbols, count, program.symbols)

    def base(self, base: str, index: int) -> int:
        """Slot of a ``Pointer``'s base; KeyError where there is no such base."""
        starts = {"arena": self.arena, "input": self.inputs, "derived": self.derived, "output": self.outputs}
        return starts[base] + index

    def symbol(self, name: str) -> int:
        """Slot of a symbol's value; ValueError where the program does not take it."""
        return self.symbols + self.names.index(name)
