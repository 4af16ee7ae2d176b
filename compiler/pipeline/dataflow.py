"""What flows between the kernels of a program, as a graph, and which of them could be one kernel.

Nodes are kernels (their positions in the program) and *values*. A value is what a base holds between two kernels that write it, so that
the graph has no cycles where a buffer is filled part by part and read in between (a concatenation that grows). Constants are no values:
they are there before the program runs. All that leaves the program (outputs, updated inputs) flows to ``END``, as does what nobody reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from effc.compiler.ir.spec import Instr, KernelSpec
from effc.compiler.pipeline.placed import Kernel
from effc.compiler.pipeline.placement import Base

#: Where all that leaves the program flows to.
END = "end"
#: Instructions whose result is of other elements than the one that the kernel is at.
SUMS = frozenset({"contract", "reduce"})
#: Templates whose kernels compute a part of their result from a part of their operands.
_LAYERS = frozenset({"contraction", "loops"})


@dataclass(frozen=True)
class Value:
    """What ``base`` holds after ``version`` kernels have written it; 0: an input as it came."""

    base: Base
    version: int


@dataclass(frozen=True)
class Shared:
    """What kernels that become one have in common with the rest of the program, and what they do not.

    ``inputs``: activations that others write, in the order of their first use. ``exit``: the one base that others read. ``between``:
    bases that these kernels alone write and read, in the order of writing; parts of one may be written by several of them.
    """

    inputs: tuple[Base, ...]
    exit: Base
    between: tuple[Base, ...]


class Dataflow:
    """``constants``: bases that no call changes."""

    def __init__(self, kernels: Sequence[Kernel], constants: Collection[Base]) -> None:
        self.kernels = kernels
        self.constants = frozenset(constants)
        self.reads = [self._read(kernel) for kernel in kernels]
        self.writes = [tuple(self._bases(kernel, ("write", "readwrite"))) for kernel in kernels]
        self.graph = nx.DiGraph()
        self._connect()

    def _bases(self, kernel: Kernel, roles: Collection[str]) -> Iterator[Base]:
        operands = zip(kernel.sites, kernel.spec.operands, strict=True)
        yield from dict.fromkeys(s.base for s, o in operands if o.role in roles and s.base not in self.constants)

    def _read(self, kernel: Kernel) -> tuple[Base, ...]:
        """What a kernel reads: first what it sums over."""
        body = kernel.spec.body
        sums = (i for i, instr in enumerate(body) if instr.op in SUMS)
        summed = {kernel.sites[body[i]["operand"]].base for s in sums for i in behind(body, s) if body[i].op == "load"}
        return tuple(sorted(self._bases(kernel, ("read", "readwrite")), key=lambda base: base not in summed))

    def _connect(self) -> None:
        writers: dict[Base, list[int]] = {}
        for number in range(len(self.kernels)):
            self.graph.add_node(number)
            for base in self.reads[number]:
                self.graph.add_edge(self._value(base, writers), number)
            for base in self.writes[number]:
                writers.setdefault(base, []).append(number)
        for base in writers:
            last = self._value(base, writers)
            if base.kind != "buffer" or not self.graph.out_degree(last):
                self.graph.add_edge(last, END)

    def _value(self, base: Base, writers: Mapping[Base, Sequence[int]]) -> Value:
        """The node of what ``base`` holds after its ``writers`` so far."""
        found = Value(base, len(writers.get(base, ())))
        if found not in self.graph:
            self.graph.add_node(found)
            self.graph.add_edges_from((writer, found) for writer in writers.get(base, ()))
        return found

    def next_values(self) -> Mapping[int | Value, Value]:
        """For each node the nearest value through which all flows that comes from it; absent where there is none."""
        after = nx.immediate_dominators(self.graph.reverse(copy=False), END) if END in self.graph else {}
        found: dict[int | Value, Value] = {}
        for node in self.graph:
            value = node
            while value != END:
                value = after[value]
                if isinstance(value, Value):
                    found[node] = value
                    break
        return found

    def kernels_between(self, node: int | Value, value: Value) -> list[int]:
        """The kernels by which all that comes from ``node``, which may be one of them, flows to ``value``, one of those behind it
        (`next_values`), and those that fill borders of what lies there; in running order.
        """
        found, stack = {node, value}, [node]
        while stack:
            fresh = set(self.graph.successors(stack.pop())) - found
            found |= fresh
            stack.extend(fresh)
        filled = (
            i for n in found - {node} if isinstance(n, Value) for i in self.graph.predecessors(n) if self.fills(i)
        )
        return sorted({n for n in found if isinstance(n, int)}.union(filled))

    def fills(self, kernel: int) -> bool:
        """Whether a kernel reads constants at most."""
        return not self.reads[kernel]

    def readers(self, base: Base, writer: int) -> list[int]:
        """The kernels that read ``base`` as the kernel ``writer`` leaves it, in running order."""
        values = (v for v in self.graph.successors(writer) if isinstance(v, Value) and v.base == base)
        return sorted(i for value in values for i in self.graph.successors(value) if isinstance(i, int))

    def shared(self, members: Sequence[int], shown: Collection[Base] = ()) -> Shared | None:
        """What ``members``, in running order, have in common with the rest, if they may run together in the place of the last one.

        That is where all are layers of known sizes, others read one base of what they write, or of those ``shown`` too, and what they read
        is written neither by others in the meantime nor later by themselves: part by part, a later one may come before an earlier one.
        """
        if not all(is_layer(self.kernels[i].spec) for i in members) or not self._may_wait(members):
            return None
        inside = set(members)
        read = dict.fromkeys(base for i in members for base in self.reads[i])
        written = dict.fromkeys(base for i in members for base in self.writes[i])
        visible = {
            value.base
            for i in members
            for value in self.graph.successors(i)
            if not inside.issuperset(self.graph.successors(value))
            or not inside.issuperset(self.graph.predecessors(value))
        }
        exits = visible.difference(shown)
        if len(exits) != 1 or exits & read.keys():
            return None
        (end,) = exits
        return Shared(
            tuple(base for base in read if base not in written),
            end,
            tuple(base for base in written if base != end and base not in shown),
        )

    def _may_wait(self, members: Sequence[int]) -> bool:
        """Whether each member may run where the last one does, and part by part."""
        inside, reads, writes = set(members), set[Base](), set[Base]()
        for i in range(members[0], members[-1] + 1):
            if i in inside:
                reads.update(self.reads[i])
                writes.update(self.writes[i])
            elif not writes.isdisjoint((*self.reads[i], *self.writes[i])):
                return False
            if not reads.isdisjoint(self.writes[i]):
                return False
        return True


def behind(body: Sequence[Instr], value: int, without: Collection[str] = ()) -> Iterator[int]:
    """``value`` of a kernel's body and what it is computed from, not beyond the operations ``without``."""
    found, stack = {value}, [value]
    while stack:
        position = stack.pop()
        yield position
        fresh = set(body[position].args) - found if body[position].op not in without else set()
        found |= fresh
        stack.extend(fresh)


def is_layer(spec: KernelSpec) -> bool:
    """Whether a kernel may be a part of another: it overwrites what it writes, raises no errors, and all its sizes are known."""
    return (
        spec.template in _LAYERS
        and not spec.symbols
        and all(o.role != "readwrite" for o in spec.operands)
        and all(i.op != "check" for i in spec.body)
    )
