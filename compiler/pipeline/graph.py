"""The dataflow graph that fusion and placement work on: a plain-Python reading of the graph IR.

``read.py`` makes it from MLIR; nothing here imports MLIR. A ``Tensor`` is an SSA value with symbolic sizes. An ``Op`` is one of

- *compute*: ``generic``, ``contract``, ``conv``, ``argreduce``, ``scan``, ``scatter``, ``attention``, ``check``: it runs in a kernel;
- *view*: ``slice``, ``expand``, ``collapse``, ``remap``, ``cast``, ``border``: an index transformation, never computed. ``remap`` is a
  transpose, a broadcast or a copy: attribute ``map`` gives the source index over the result's ``d0, d1, …`` (plain dims, or 0). ``border``
  is a ``pad`` with zeros that its readers add themselves (`borders`);
- *assemble*: ``pad``, ``concat``, ``insert``: its operands are placed into parts of its result's buffer;
- ``fill``: a constant everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from effc.compiler.ir.expr import Expr
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.ir.spec import Instr

VIEWS = frozenset({"slice", "expand", "collapse", "remap", "cast", "border"})
ASSEMBLIES = frozenset({"pad", "concat", "insert"})
CONTRACTIONS = frozenset({"contract", "conv"})


@dataclass(eq=False)
class Tensor:
    """An SSA value: element type, sizes, who makes it (None: an input) and who reads it. ``share``: of a threshold, the share of what is
    compared with it that is expected not to exceed it, where that is known.
    """

    name: str
    dtype: str
    sizes: tuple[Expr, ...]
    producer: Op | None = None
    users: list[Op] = field(default_factory=list)
    share: float | None = None

    def __repr__(self) -> str:
        return f"{self.name}: {'x'.join(map(str, self.sizes))}x{self.dtype}"


@dataclass(frozen=True)
class BodyInstr:
    """An instruction of a generic's body. ``args`` are earlier positions; ``index`` marks position → Expr where it is affine.

    ``op`` is as in ``Instr``, and in addition ``operand`` (attribute ``number``: the element of the op's operand), ``accumulator`` and
    ``extract`` (attribute ``number``: which captured tensor; ``args`` are its indices).
    """

    op: str
    args: tuple[int, ...]
    dtype: str
    attributes: tuple[tuple[str, Any], ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        return next((v for k, v in self.attributes if k == name), default)

    def as_instr(self, args: tuple[int, ...]) -> Instr:
        return Instr(self.op, args, self.dtype, self.attributes)


@dataclass(frozen=True)
class Body:
    """A generic's scalar function: instructions, and the positions of what it yields (one for each result)."""

    instrs: tuple[BodyInstr, ...]
    yields: tuple[int, ...]

    def needed(self) -> set[int]:
        """Positions that the yields, or a check, depend on."""
        return self.behind(*self.yields, *(i for i, instr in enumerate(self.instrs) if instr.op == "check"))

    def behind(self, *positions: int) -> set[int]:
        """``positions``, and those that they depend on."""
        found: set[int] = set()
        stack = list(positions)
        while stack:
            position = stack.pop()
            if position not in found:
                found.add(position)
                stack.extend(self.instrs[position].args)
        return found


@dataclass(eq=False)
class Op:
    """One operation. ``dims`` and ``iterators`` are a compute op's iteration space; ``maps`` give each operand's and result's index."""

    kind: str
    operands: list[Tensor]
    results: list[Tensor]
    location: str = ""
    dims: tuple[Expr, ...] = ()
    iterators: tuple[str, ...] = ()
    maps: tuple[tuple[Expr, ...], ...] = ()
    result_maps: tuple[tuple[Expr, ...], ...] = ()
    body: Body | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def is_view(self) -> bool:
        return self.kind in VIEWS

    @property
    def is_compute(self) -> bool:
        return not (self.is_view or self.kind in ASSEMBLIES or self.kind == "fill")

    @property
    def reduction_dims(self) -> tuple[int, ...]:
        return tuple(i for i, kind in enumerate(self.iterators) if kind == "reduction")

    @property
    def parallel_dims(self) -> tuple[int, ...]:
        return tuple(i for i, kind in enumerate(self.iterators) if kind == "parallel")


@dataclass(frozen=True)
class JoinedPart:
    """A view of the memory of a constant input ``tensor``, in elements."""

    tensor: Tensor
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(eq=False)
class GraphInput:
    """A tensor argument with its placement in elements and, for a parameter, its name in the model; ``range``: of integers, the
    least and the greatest when it was compiled; ``values``: all elements of a small one. Whoever relies on them checks that they stay.
    ``sparsity``: which of its elements may differ from zero, of the matrix ``[first dimension, all others as they lie in memory]``.
    ``parts``: what it is joined of, one behind the other along its slowest dimension (`merging`).
    """

    tensor: Tensor
    strides: tuple[Expr, ...]
    param: str
    range: tuple[int, int] | None = None
    values: tuple[float, ...] = ()
    parts: tuple[JoinedPart, ...] = ()
    sparsity: Sparsity | None = None


@dataclass(eq=False)
class GraphOutput:
    """A result: the value, the strides that the caller expects, and the input that it overwrites, if any."""

    tensor: Tensor
    strides: tuple[Expr, ...]
    mutates: int | None


@dataclass(eq=False)
class Graph:
    """A region: symbols, inputs, operations in topological order, outputs."""

    symbols: tuple[str, ...]
    inputs: list[GraphInput]
    ops: list[Op]
    outputs: list[GraphOutput]

    def constants(self) -> set[int]:
        """Numbers of the inputs that no call changes: parameters, and what is prepared or joined from them, that are not updated here."""
        updated = {o.mutates for o in self.outputs}
        return {i for i, source in enumerate(self.inputs) if source.param and i not in updated}


def is_static(op: Op, static: Collection[Tensor]) -> bool:
    """Whether ``op`` depends on parameters alone: its operands are all ``static``, and it updates nothing."""
    return op.kind not in ("scatter", "attention") and all(t in static for t in op.operands)


def replace_ops(graph: Graph, rewritten: Callable[[Op], Sequence[Op] | None], seen: Callable[[Op], object]) -> None:
    """Put ``rewritten(op)``, where it is not None, in the place of each operation, in order; of operations that several share, the first
    stays. ``seen`` hears of every operation of the graph that results, before those behind it are rewritten.
    """
    ops: dict[Op, None] = {}
    for op in graph.ops:
        made = rewritten(op)
        if made is None:
            ops[op] = None
            seen(op)
            continue
        for tensor in op.operands:
            tensor.users.remove(op)
        for new in made:
            if new not in ops:
                ops[new] = None
                seen(new)
                for tensor in new.operands:
                    tensor.users.append(new)
    graph.ops[:] = ops
