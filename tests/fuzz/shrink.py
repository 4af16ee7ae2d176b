"""Make a failing program small: drop statements and results, turn what remains undefined into inputs, plain layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from .program import Input, Program, load

Fails = Callable[[Program], bool]


def shrink(program: Program, fails: Fails, step: int = 0) -> Program:
    """The smallest program found for which ``fails`` holds, by repeated single removals. ``step`` fixes the sizes of
    new inputs.
    """
    going = True
    while going:
        going = False
        for smaller in _candidates(program, step):
            if fails(smaller):
                program, going = smaller, True
                break
    return program


def _candidates(program: Program, step: int) -> Iterator[Program]:
    """Smaller programs, the most promising first."""
    if len(program.results) > 1:
        for name in program.results:
            yield _prune(replace(program, results=(name,)))
        for i in range(len(program.results)):
            yield _prune(replace(program, results=program.results[:i] + program.results[i + 1 :]))
    for statement in program.statements:
        if statement.target and program.results != (statement.target,):
            ancestor = _prune(replace(program, results=(statement.target,)))
            if len(ancestor.statements) < len(program.statements):
                yield ancestor
    for i in reversed(range(len(program.statements))):
        shorter = _without(program, i, step)
        if shorter is not None:
            yield shorter
    for i, x in enumerate(program.inputs):
        for plain in (replace(x, layout="contiguous"), replace(x, special=False)):
            if plain != x:
                yield replace(program, inputs=(*program.inputs[:i], plain, *program.inputs[i + 1 :]))


def _prune(program: Program) -> Program:
    """Without statements whose value nothing uses; updates in place stay."""
    needed, kept = set(program.results), []
    for statement in reversed(program.statements):
        if not statement.target or statement.target in needed:
            kept.append(statement)
            needed |= statement.names()
    inputs = tuple(x for x in program.inputs if x.name in needed)
    return replace(program, statements=tuple(reversed(kept)), inputs=inputs or program.inputs[:1])


def _without(program: Program, index: int, step: int) -> Program | None:
    """Statement ``index`` removed; its value, where used, becomes an input of the shape and dtype that it had."""
    statement = program.statements[index]
    rest = program.statements[:index] + program.statements[index + 1 :]
    inputs = program.inputs
    used = set(program.results).union(*(s.names() for s in rest))
    if statement.target and statement.target in used:
        probe = replace(program, statements=program.statements[: index + 1], results=(statement.target,))
        graph, make = load(probe.source())
        with torch.no_grad():
            (value,) = graph(*make(program.seed, step))
        inputs = (*inputs, Input(statement.target, value.dtype, str(tuple(value.shape))))
    smaller = _prune(replace(program, statements=rest, inputs=inputs))
    return smaller if smaller.results else None
