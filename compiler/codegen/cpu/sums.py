"""Sums that are kept in several vectors."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.text import Builder, Value


def added(b: Builder, total: Sequence[Value], more: Sequence[Value]) -> list[Value]:
    """Float vectors, one by one."""
    return [b.op("arith.addf", x, y) for x, y in zip(total, more, strict=True)]


def folded(b: Builder, carried: Sequence[Value], sets: int) -> list[Value]:
    """The sum of ``sets`` sets of accumulators that took turns, which lie one behind the other."""
    count = len(carried) // sets
    total = list(carried[:count])
    for i in range(1, sets):
        total = added(b, total, carried[i * count : (i + 1) * count])
    return total
