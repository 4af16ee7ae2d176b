"""Passes over the reduction dimensions: which instruction runs in which, and what is kept between them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.loops.costs import is_heavy, work
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import ITEM_SIZE, Instr, KernelSpec

#: Stack that row buffers may take; half of what a kernel may use, so that LLVM has room to spill.
BUFFER_BYTES = 32 * 1024


@dataclass(frozen=True)
class Staging:
    """``inner[i]``: whether the instruction varies with the reduction dimensions.

    ``passes[i]``: for an inner instruction or a ``reduce``, the pass in which it is first possible; an inner store's is
    the last. ``ready[i]``: the first pass that can use the value. ``count``: number of passes. ``buffered``: inner
    values kept from their pass in a row buffer; ``parked``: those kept where a store, the second of the pair, will put its
    result. ``work[p]``: of one point of pass ``p``.
    """

    inner: tuple[bool, ...]
    passes: tuple[int, ...]
    ready: tuple[int, ...]
    count: int
    buffered: tuple[int, ...]
    parked: tuple[tuple[int, int], ...]
    work: tuple[int, ...]

    def is_root(self, spec: KernelSpec, i: int) -> bool:
        """Whether the loops over the reduction dimensions run for this instruction's sake."""
        return spec.body[i].op == "reduce" or (self.inner[i] and spec.body[i].op in ("store", "check"))


def stage(
    spec: KernelSpec, depends: Sequence[frozenset[str]], row_elements: int | None, horizontal: bool = False
) -> Staging:
    """``row_elements``: elements of a row buffer (the reduction dimensions, padded), or None where there can be none.
    ``horizontal``: the vectors run along a reduction dimension, so a row of the result can be a buffer.
    """
    reductions = {f"d{i}" for i, d in enumerate(spec.dims) if d.kind == "reduction"}
    inner = tuple(bool(d & reductions) for d in depends)
    ready: list[int] = []
    passes: list[int] = []
    for instr in spec.body:
        first = max((ready[a] for a in inputs(instr)), default=0)
        passes.append(first)
        ready.append(first + 1 if instr.op == "reduce" else first)
    base = Staging(inner, tuple(passes), tuple(ready), 0, (), (), ())
    roots = [i for i in range(len(spec.body)) if base.is_root(spec, i)]
    count = 1 + max(passes[i] for i in roots) if roots else 0
    for i in roots:
        if spec.body[i].op == "store":  # an in-place result must not be read again by a later pass
            passes[i] = count - 1
    by_pass = [[i for i in roots if passes[i] == p] for p in range(count)]
    rows = _result_rows(spec, inner) if horizontal else []
    buffered, parked = _buffered(spec, inner, by_pass, row_elements, rows)
    costs = []
    for p, pass_roots in enumerate(by_pass):
        loaded = [i for i in (*buffered, *(i for i, _ in parked)) if passes[i] < p]
        costs.append(work(spec, [*_needed(spec, inner, pass_roots, loaded), *pass_roots]))
    return Staging(inner, tuple(passes), tuple(ready), count, buffered, parked, tuple(costs))


def inputs(instr: Instr) -> list[int]:
    """The instructions whose values ``instr`` uses, as arguments or in its address."""
    used = list(instr.args)
    for _, value in instr.attributes:
        if isinstance(value, Expr):
            used += [int(n[1:]) for n in value.variables() if n[0] == "v"]
    return used


def _needed(spec: KernelSpec, inner: Sequence[bool], roots: Sequence[int], stop: Collection[int]) -> set[int]:
    """The inner instructions that ``roots`` need, through others; nothing behind those in ``stop``."""
    pending, seen = [a for r in roots for a in inputs(spec.body[r])], set[int]()
    while pending:
        i = pending.pop()
        if i in seen or not inner[i] or i in stop:
            continue
        seen.add(i)
        pending += inputs(spec.body[i])
    return seen


def _buffered(
    spec: KernelSpec,
    inner: Sequence[bool],
    by_pass: Sequence[Sequence[int]],
    row_elements: int | None,
    result_rows: Sequence[int],
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Inner values that cost much and are needed in a later pass again: those whose rows fit the stack, and (value, store) of
    those that one of ``result_rows`` holds meanwhile.
    """
    buffered: list[int] = []
    parked: list[tuple[int, int]] = []
    left = BUFFER_BYTES
    free = list(result_rows)
    seen: set[int] = set()
    for roots in by_pass:
        needed = _needed(spec, inner, roots, buffered)
        for i in sorted(needed & seen, reverse=True):  # the last first: what it needs is then not needed again
            kept = [*buffered, *(value for value, _ in parked)]
            if not is_heavy(spec.body[i].op) or i in kept or i not in _needed(spec, inner, roots, kept):
                continue
            size = BUFFER_BYTES + 1 if row_elements is None else row_elements * ITEM_SIZE[spec.body[i].dtype]
            store = next((s for s in free if spec.operands[spec.body[s]["operand"]].dtype == spec.body[i].dtype), None)
            if size <= left:
                buffered.append(i)
                left -= size
            elif store is not None:
                parked.append((i, store))
                free.remove(store)
        seen |= needed
    return tuple(buffered), tuple(parked)


def _result_rows(spec: KernelSpec, inner: Sequence[bool]) -> list[int]:
    """Stores at every point of memory that nothing else touches."""
    reductions = {f"d{i}" for i, d in enumerate(spec.dims) if d.kind == "reduction"}
    touched = [instr["operand"] for instr in spec.body if instr.op in ("load", "store")]
    return [
        i
        for i, instr in enumerate(spec.body)
        if instr.op == "store"
        and inner[i]
        and len(instr.args) == 1
        and spec.operands[instr["operand"]].role == "write"
        and touched.count(instr["operand"]) == 1
        and reductions <= instr["address"].variables()
        and not any(name[0] == "v" for name in instr["address"].variables())
    ]
