"""Which contractions have a kernel that leaves out weights as zeros come at run time, and their parts.

``inputs``: elements of the row are zero, and so are their products with a row of the weight ``[sum][columns]``, if that is finite: a flag
that is derived with the weight says so. ``outputs``: what follows the sum makes zeros of some columns whatever their sums are
(``select(condition, 0, …)``), so that these sums, rows of the weight ``[columns][sum]``, are not needed. Results are those of the dense
kernel in either case, NaN and infinity included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effc.compiler.codegen.cpu.contraction.roles import Nest, depends
from effc.compiler.codegen.cpu.contraction.roles import find as find_nest
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import ITEM_SIZE, SHARE, ZEROS, Instr, KernelSpec

#: Elements of a row that the list on the stack has room for, 4 bytes each.
MOST_LISTED = 15_872
#: Products of a sum in lanes that are one chain each: 128 of them (`contraction.chains`) in 16 lanes.
MOST_SUMMED = 2048
#: Share of zeros that is expected where the spec does not say: how many there are, the data decides.
EXPECTED = 0.5
#: Types of both factors; sums are float32.
_FACTORS = ("f32", "bf16")
#: Conversions that leave a zero one.
_ROUNDINGS = ("arith.truncf", "arith.extf")


@dataclass(frozen=True)
class Condition:
    """``instr``, an i1 for each column: where it is ``skipped``, the column's result is zero."""

    instr: int
    skipped: bool


@dataclass(frozen=True)
class Form:
    """``nest``: a contraction of one row, whose constant factor has the columns. ``condition``: of ``outputs``, else None. ``share``: of
    zeros, which is expected.
    """

    nest: Nest
    condition: Condition | None
    share: float

    @property
    def method(self) -> Literal["inputs", "outputs"]:
        return "inputs" if self.condition is None else "outputs"

    @property
    def dtype(self) -> str:
        """Of both factors."""
        return self.nest.spec.operands[self.nest.left.operand].dtype

    @property
    def item(self) -> int:
        """Bytes of an element of either factor."""
        return ITEM_SIZE[self.dtype]

    @property
    def columns(self) -> int:
        return _known(self.nest.size(self.nest.column))

    @property
    def sum(self) -> int:
        return _known(self.nest.size(self.nest.reduction[0]))


def find(spec: KernelSpec, target: Target) -> Form | str:
    """The parts of ``spec``, whose constant factor is packed, or the reason why it has no such kernel."""
    if target.vector_bytes < 64:
        return "lists of what is not zero are compressed by AVX-512"
    nest = find_nest(spec)
    if isinstance(nest, str):
        return nest
    left, right = nest.left, nest.right
    body, dtypes = nest.spec.body, {spec.operands[side.operand].dtype for side in (left, right)}
    if not right.packed or right.quantized or body[nest.contract].dtype != "f32":
        return "no constant factor, or sums that are not float32"
    widened = all(body[i].op == "arith.extf" for side in (left, right) for i in side.chain)
    if not widened or not any(dtypes == {dtype} for dtype in _FACTORS):
        return f"factors of other types than {' or '.join(_FACTORS)}"
    if nest.row is not None or nest.outer or nest.wise or nest.borders or len(nest.reduction) != 1:
        return "not one row times a matrix"
    columns, length = (nest.size(i).constant for i in (nest.column, nest.reduction[0]))
    if not columns or not length:
        return "sizes that are not known numbers, or 0"
    if nest.stride(left.load, nest.reduction[0]).constant != 1:
        return "the elements of the row are not contiguous"
    condition, share = _condition(nest.spec.body, nest.contract), spec.get(SHARE, EXPECTED)
    if condition is not None and length <= MOST_SUMMED:
        return Form(nest, condition, share)
    if left.operand not in spec.get(ZEROS, ()):
        return "nothing is known of zeros in the row, or in what follows the sum"
    return Form(nest, None, share) if length <= MOST_LISTED else "the row is too long for a list on the stack"


def _condition(body: tuple[Instr, ...], contract: int) -> Condition | None:
    """Under which the only result is zero without the sum."""
    stores = [i for i in body if i.op == "store"]
    if len(stores) != 1 or len(stores[0].args) != 1 or any(i.op == "check" for i in body):
        return None
    value = body[stores[0].args[0]]
    while value.op in _ROUNDINGS:
        value = body[value.args[0]]
    if value.op != "arith.select" or depends(body, value.args[0], contract):
        return None
    for place, skipped in ((1, True), (2, False)):
        chosen = body[value.args[place]]
        if chosen.op == "constant" and chosen["value"] == 0:
            return Condition(value.args[0], skipped)
    return None


def _known(size: Expr) -> int:
    assert size.constant is not None, "find admits known sizes only"
    return size.constant
