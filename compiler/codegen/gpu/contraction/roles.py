"""Which dims of a contraction are rows, columns, sums and batch, and what tensor cores are to multiply.

A dim that only the left factor depends on is a row, one that only the right one depends on a column; the rest of the parallel dims are a
batch. Rows and columns of a tile run over all their dims, flattened; so do the sums, unless the innermost is long enough to fill blocks:
then the others are a loop of their own (the taps of a convolution's window), and addresses stay linear.

Factors may be any values: loads, masked to the inside of an image, codes that are decoded, gathers. Two values of 16 bits, or of i8,
are multiplied as such. So are codes and values of 16 bits: integers of 8 bits, less an integer zero point, have no more digits than
bf16, so their products are exact. Numbers of a codebook are multiplied in pieces of 16 bits (`pieces`). Scales, and other zero points,
come in behind the product of a block (`codes`). Unsigned bytes are multiplied less 128, as signed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.codegen.canonical import simplify
from effc.compiler.codegen.gpu.contraction.codes import Codes, read_codes
from effc.compiler.codegen.gpu.ops import LOW_PRECISION, known
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import KernelSpec

#: A sum's innermost dim of at least this size is a block's own; a shorter one would leave most of a block empty.
LEAST_BLOCK = 16


@dataclass(frozen=True)
class Factor:
    """``value``: the instruction whose result tensor cores take, as ``dtype``. Of ``codes``, what is left out of the product: their zero
    point, which takes a multiple of the other factor's sums from it, and their scale. ``unsigned``: bytes of which 128 is left out.
    """

    value: int
    dtype: str
    codes: Codes | None = None
    unsigned: bool = False

    @property
    def pieces(self) -> int:
        """Of how many tiles the factor is the sum."""
        return self.codes.pieces if self.codes is not None else 1

    @property
    def by_steps(self) -> bool:
        """Whether a step's product must be corrected before it is added."""
        return self.codes is not None and (self.codes.varies or self.codes.zero is not None)

    @property
    def group(self) -> int:
        """The most steps that a block may have; 0: any number."""
        return self.codes.group if self.codes is not None else 0


@dataclass(frozen=True)
class Roles:
    """``spec`` simplified, ``contract`` its product; ``outer_sums`` are looped over, ``sums`` fill blocks."""

    spec: KernelSpec
    contract: int
    left: Factor
    right: Factor
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    batch: tuple[int, ...]
    outer_sums: tuple[int, ...]
    sums: tuple[int, ...]

    @property
    def accumulator(self) -> str:
        return self.spec.body[self.contract].dtype


def find(spec: KernelSpec) -> Roles | str:
    """The roles, or the reason why tensor cores do not compute ``spec``."""
    spec = simplify(spec)
    contracts = [i for i, instr in enumerate(spec.body) if instr.op == "contract"]
    if len(contracts) != 1 or any(i.op == "reduce" for i in spec.body):
        return "more than one product, or a reduction beside it"
    at = contracts[0]
    for i, instr in enumerate(spec.body):
        if instr.op not in ("load", "store", "index", "check", "contract") and not known(instr.op):
            return f"{instr.op} (v{i}) has no form on the GPU"
    depends = dependences(spec)
    summed = tuple(i for i, d in enumerate(spec.dims) if d.kind == "reduction")
    last = spec.dims[summed[-1]].size.constant if summed else 1
    alone = len(summed) > 1 and (last is None or last >= LEAST_BLOCK)
    outer, inside = (summed[:-1], summed[-1:]) if alone else ((), summed)
    factors = coded(spec, at, outer) or _factors(spec, at)
    if isinstance(factors, str):
        return factors
    left, right = (depends[a] for a in spec.body[at].args)
    parallel = [i for i, d in enumerate(spec.dims) if d.kind == "parallel"]
    inner = {i for i, level in enumerate(spec.levels()) if level > len(parallel)}
    if any(spec.body[i].op in ("store", "check") for i in inner):
        return "something is stored or checked at every point of the sum"
    rows = tuple(i for i in parallel if i in left and i not in right)
    columns = tuple(i for i in parallel if i in right and i not in left)
    if not rows or not columns:
        return "a factor has no dims of its own: no matrix product"
    batch = tuple(i for i in parallel if i not in rows and i not in columns)
    return Roles(spec, at, *factors, rows, columns, batch, outer, inside)


def dependences(spec: KernelSpec) -> tuple[frozenset[int], ...]:
    """For each instruction the dims that its value varies with."""
    summed = frozenset(i for i, d in enumerate(spec.dims) if d.kind == "reduction")
    found: list[frozenset[int]] = []
    for instr in spec.body:
        mine = frozenset[int]().union(*(found[a] for a in instr.args))
        for _, value in instr.attributes:
            for name in value.variables() if isinstance(value, Expr) else ():
                if name[1:].isdigit() and name[0] in "dv":
                    mine |= {int(name[1:])} if name[0] == "d" else found[int(name[1:])]
        found.append(mine - summed if instr.op in ("reduce", "contract") else mine)
    return tuple(found)


def coded(spec: KernelSpec, at: int, outer: Sequence[int]) -> tuple[Factor, Factor] | None:
    """The factors where one is codes and the other of 16 bits."""
    if spec.body[at].dtype != "f32":
        return None
    first, second = spec.body[at].args
    for codes, other in ((first, second), (second, first)):
        plain = peeled(spec, other)
        dtype = spec.body[plain].dtype
        found = read_codes(spec, codes, outer, dtype) if dtype in LOW_PRECISION else None
        if found is not None:
            made, rest = Factor(found.value, dtype, found), Factor(plain, dtype)
            return (made, rest) if codes == first else (rest, made)
    return None


def _factors(spec: KernelSpec, at: int) -> tuple[Factor, Factor] | str:
    """What is multiplied: the values before conversions that lose nothing."""
    accumulator = spec.body[at].dtype
    values = [peeled(spec, a) for a in spec.body[at].args]
    dtypes = [spec.body[v].dtype for v in values]
    if accumulator == "i32":
        if dtypes == ["i8", "i8"]:
            one, other = (
                Factor(v, "i8", unsigned=_is_unsigned(spec, a, v))
                for a, v in zip(spec.body[at].args, values, strict=True)
            )
            return one, other
        return f"a product of {' and '.join(dtypes)} in i32; tensor cores take i8"
    if accumulator != "f32":
        return f"a sum in {accumulator}"
    given = {spec.body[a].dtype for a in spec.body[at].args} & LOW_PRECISION
    if len(given) > 1 or (not given and len({*dtypes} & LOW_PRECISION) > 1):
        return f"a product of {' and '.join(dtypes)}"
    # A factor that the body has in 16 bits makes it eager's product of 16 bits, in which the other, left in f32, is rounded too.
    # Two that are widened lose nothing; one beside a factor of f32 is a product of f32.
    narrow = next(iter(given), dtypes[0] if dtypes[0] == dtypes[1] else "f32")
    if narrow in LOW_PRECISION:
        return Factor(values[0], narrow), Factor(values[1], narrow)
    return Factor(spec.body[at].args[0], "f32"), Factor(spec.body[at].args[1], "f32")


def peeled(spec: KernelSpec, value: int) -> int:
    """What ``value`` is converted from without loss: a 16-bit float, or i8."""
    instr = spec.body[value]
    if instr.op in ("arith.extf", "arith.extsi", "arith.extui"):
        source = spec.body[instr.args[0]].dtype
        if source in LOW_PRECISION or source == "i8":
            return instr.args[0]
    return value


def _is_unsigned(spec: KernelSpec, argument: int, value: int) -> bool:
    return argument != value and spec.body[argument].op == "arith.extui"


def needed(spec: KernelSpec, roots: Sequence[int]) -> set[int]:
    """``roots`` and all instructions from which they are computed."""
    found, pending = set[int](), list(roots)
    while pending:
        value = pending.pop()
        if value in found:
            continue
        found.add(value)
        instr = spec.body[value]
        pending += instr.args
        for _, e in instr.attributes:
            if isinstance(e, Expr):
                pending += [int(n[1:]) for n in e.variables() if n[0] == "v" and n[1:].isdigit()]
    return found
