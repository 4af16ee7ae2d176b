"""A contraction's spec with its product replaced: by a loop over products, or by sums that another kernel has left in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from effc.compiler.codegen.gpu.contraction.roles import needed
from effc.compiler.ir.expr import Expr, var
from effc.compiler.ir.spec import Instr, KernelSpec, Schedule


def as_loops(spec: KernelSpec) -> KernelSpec:
    """The same kernel as ``loops``: products, and their sum as a ``reduce``. For few rows memory is the limit, not multiplication."""

    def product(first: int, args: Sequence[int], contract: Instr) -> list[Instr]:
        made: list[Instr] = []
        factors = []
        for arg, old in zip(args, contract.args, strict=True):
            source = spec.body[old].dtype
            factors.append(arg)
            if source != contract.dtype:
                made.append(Instr(_widening(source), (arg,), contract.dtype))
                factors[-1] = first + len(made) - 1
        multiply = "arith.mulf" if contract.dtype[0] == "f" else "arith.muli"
        made.append(Instr(multiply, tuple(factors), contract.dtype))
        made.append(Instr("reduce", (first + len(made) - 1,), contract.dtype, (("kind", "add"),)))
        return made

    body = _replaced(spec, "contract", product)
    return replace(spec, template="loops", body=body, schedule=Schedule())


def folding(spec: KernelSpec, load: Instr) -> tuple[Instr, ...]:
    """The body with ``load`` over the reduction dims in the place of what is reduced there, the products of a contraction or the values of
    a single ``reduce``, and without what that is computed from.
    """

    def folded(first: int, _: Sequence[int], old: Instr) -> list[Instr]:
        return [load, Instr("reduce", (first,), old.dtype, (("kind", old.get("kind", "add")),))]

    return _replaced(spec, "contract" if spec.template == "contraction" else "reduce", folded)


def _widening(dtype: str) -> str:
    return "arith.extf" if dtype[0] in "fb" else "arith.extui" if dtype == "i1" else "arith.extsi"


def _replaced(spec: KernelSpec, op: str, make: Callable[[int, Sequence[int], Instr], list[Instr]]) -> tuple[Instr, ...]:
    """The body with what ``make`` gives for each instruction ``op``: of the number of the first new instruction, the new numbers of the
    factors, and the old instruction. The last new one is the result. What nothing needs any more goes.
    """
    body: list[Instr] = []
    number: dict[int, int] = {}
    for i, instr in enumerate(spec.body):
        args = tuple(number[a] for a in instr.args)
        if instr.op == op:
            body += make(len(body), args, instr)
        else:
            body.append(_renamed(replace(instr, args=args), number))
        number[i] = len(body) - 1
    kept = sorted(
        needed(replace(spec, body=tuple(body)), [i for i, x in enumerate(body) if x.op in ("store", "check")])
    )
    fresh = {old: new for new, old in enumerate(kept)}
    return tuple(_renamed(replace(body[i], args=tuple(fresh[a] for a in body[i].args)), fresh) for i in kept)


def _renamed(instr: Instr, number: dict[int, int]) -> Instr:
    names: dict[str, Expr | int] = {f"v{old}": var(f"v{new}") for old, new in number.items()}
    attributes = tuple((k, v.substitute(names) if isinstance(v, Expr) else v) for k, v in instr.attributes)
    return replace(instr, attributes=attributes)
