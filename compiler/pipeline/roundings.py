"""Roundings to bf16 inside a kernel that need not be: eager rounds after each operation, a fused kernel where it stores.

What a chain of operations hands on within a kernel then keeps the precision of float32, in which all of them compute.
Left alone is a rounding

- that the model itself asks for (``x.to(torch.bfloat16)``: splitting a number into parts relies on it),
- whose result is also read rounded, by another kernel or in bf16 (``x - x.amax()`` is 0 somewhere: all readers must see
  one number),
- that something might see by more than its error: a comparison, a conversion to an integer, the position of a maximum,
  a store.

bf16 has the range of float32, so nothing that would be infinite stays finite (float16 has not, and is left as it is).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from dataclasses import replace

from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import Instr
from effc.compiler.pipeline.graph import Op

#: Continuous in every argument, so an error of half a unit stays of its size.
_CONTINUOUS = frozenset(
    {f"arith.{op}" for op in ("addf", "subf", "mulf", "divf", "negf", "maximumf", "minimumf", "extf", "truncf")}
    | {f"math.{op}" for op in ("absf", "fma", "sqrt", "rsqrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p")}
    | {f"math.{op}" for op in ("sin", "cos", "tanh", "sinh", "cosh", "erf", "powf", "atan", "asinh")}
)
_LOGIC = frozenset({"arith.andi", "arith.ori", "arith.xori"})


def read_within(op: Op, members: Container[Op]) -> bool:
    """Whether only ``members`` read what ``op`` computes, seen through views."""
    pending = list(op.results)
    while pending:
        for user in pending.pop().users:
            if user.is_view:
                pending += user.results
            elif user not in members:
                return False
    return True


def fold_roundings(instrs: Sequence[Instr], implicit: Collection[int]) -> list[Instr]:
    """``instrs`` (of which those at ``implicit`` are an operation's own ``arith.truncf`` to bf16) reading the value before a rounding
    instead of the one after it, where they may. Positions stay; what nobody reads any more is left to the caller.
    """
    uses = _Uses(instrs)
    before: dict[int, int] = {}
    for i, instr in enumerate(instrs):
        if instr.op == "arith.extf" and instr.dtype == "f32" and instr.args[0] in implicit and uses.hides(i):
            source = instrs[instr.args[0]].args[0]
            before[i] = before.get(source, source)
    return [replace(n, args=tuple(before.get(a, a) for a in n.args)) for n in instrs]


class _Uses:
    def __init__(self, instrs: Sequence[Instr]) -> None:
        self.instrs = instrs
        self.of: list[list[int]] = [[] for _ in instrs]
        self.addresses: set[int] = set()
        for i, instr in enumerate(instrs):
            for a in dict.fromkeys(instr.args):
                self.of[a].append(i)
            for _, value in instr.attributes:
                if isinstance(value, Expr):
                    self.addresses |= {int(n[1:]) for n in value.variables() if n[0] == "v"}

    def hides(self, widening: int) -> bool:
        """Whether nothing shows that the rounding before ``widening`` is left out for what reads this."""
        readers = {self.instrs[i].op for i in self.of[self.instrs[widening].args[0]]}
        return readers <= {"arith.extf", "store"} and self.tolerate(widening)

    def tolerate(self, value: int) -> bool:
        """Whether all that is computed from ``value``, up to the next rounding to bf16 or a store of what was computed, is continuous."""
        pending, seen = [value], {value}
        while pending:
            i = pending.pop()
            if i in self.addresses:
                return False
            for user in self.of[i]:
                instr = self.instrs[user]
                if instr.op == "store":
                    if i == value:
                        return False
                    continue
                if not self._continuous(user, i):
                    return False
                if user not in seen and not (instr.op == "arith.truncf" and instr.dtype == "bf16"):
                    seen.add(user)
                    pending += [user] if instr.dtype != "i1" else self._chosen(user)
        return True

    def _continuous(self, user: int, argument: int) -> bool:
        instr = self.instrs[user]
        if instr.op == "arith.select":
            return argument != instr.args[0]
        if instr.op == "reduce":
            return instr["kind"] in ("add", "mul", "max", "min")
        if instr.op == "arith.cmpf":
            return self._limits(user)
        return instr.op in _CONTINUOUS

    def _limits(self, comparison: int) -> bool:
        """Whether a comparison only tests for NaN or a sign, or chooses between the two that it compares; and only chooses."""
        instr = self.instrs[comparison]
        x, y = instr.args
        chosen = self._chosen(comparison)
        if not chosen or any(self.instrs[s].op != "arith.select" for s in chosen):
            return False
        constant = self.instrs[y]
        if x == y or (constant.op == "constant" and constant["value"] == 0):
            return True
        return all(set(self.instrs[s].args[1:]) <= {x, y} for s in chosen)

    def _chosen(self, condition: int) -> list[int]:
        """What uses a condition, seen through logic."""
        found: list[int] = []
        for user in self.of[condition]:
            found += self._chosen(user) if self.instrs[user].op in _LOGIC else [user]
        return found
