"""Contraction specs from strides, and what they should compute, by torch in float64 or int64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from kernels import HOST, Kernel, Rewrite

from effc.compiler.codegen.cpu.schedules import packing
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr, as_expr, const, product, var
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand, Schedule
from effc.runtime.derive import derive
from effc.runtime.dtypes import TORCH_DTYPES

#: Products of a reference at once: 32 MB of them.
_AT_ONCE = 1 << 22
ACCUMULATORS = {"f64": "f64", "i64": "i64", "i32": "i32", "i8": "i32", "i1": "i32"}

Strides = Sequence[int | str]


@dataclass(frozen=True)
class Case:
    """``sizes``: of the parallel dims, then of ``sums`` reduction dims; a stride a dim for each tensor (ints or symbols' text).

    ``bias`` (strides over the parallel dims) and ``relu`` make an epilogue; ``result``: the output's dtype. ``unsigned``: the factor (0 or
    1) whose bytes are, the other's being signed.
    """

    sizes: Sequence[int | str]
    sums: int
    lhs: Strides
    rhs: Strides
    out: Strides
    dtype: str = "f32"
    result: str = ""
    bias: Strides | None = None
    relu: bool = False
    offset: int = 0
    unsigned: int | None = None

    @property
    def accumulator(self) -> str:
        return ACCUMULATORS.get(self.dtype, "f32")

    def spec(self) -> KernelSpec:
        exprs = [as_expr(s) for s in self.sizes]
        parallel = len(exprs) - self.sums
        dims = tuple(Dim(s, "parallel" if i < parallel else "reduction") for i, s in enumerate(exprs))
        acc, result = self.accumulator, self.result or self.dtype
        operands = [self._operand(self.dtype, self.lhs), self._operand(self.dtype, self.rhs)]
        body = [_load(self.dtype, 0, self.lhs, self.offset), _load(self.dtype, 1, self.rhs, self.offset)]
        if self.unsigned is not None:
            body += [Instr("arith.extui" if i == self.unsigned else "arith.extsi", (i,), acc) for i in (0, 1)]
        body.append(Instr("contract", (len(body) - 2, len(body) - 1), acc))
        value = len(body) - 1
        if self.bias is not None:
            operands.append(self._operand(acc, self.bias))
            body += [
                _load(acc, 2, self.bias, 0),
                Instr("arith.addf" if acc[0] == "f" else "arith.addi", (value, value + 1), acc),
            ]
            value += 2
        if self.relu:
            body += [
                Instr("constant", (), acc, (("value", 0.0),)),
                Instr("arith.maximumf", (value, len(body)), acc),
            ]
            value = len(body) - 1
        if result != acc:
            narrow = "arith.truncf" if acc[0] == "f" else "arith.trunci"
            body.append(Instr(narrow, (value,), result))
            value = len(body) - 1
        operands.append(Operand(result, "write", const(1)))
        store = (("address", _address(self.out)), ("operand", len(operands) - 1))
        body.append(Instr("store", (value,), "", store))
        text = [*self.sizes, *self.lhs, *self.rhs, *self.out]
        symbols = sorted({v for t in text for v in as_expr(t).variables()})
        return KernelSpec("contraction", dims, tuple(operands), tuple(body), tuple(symbols))

    def _operand(self, dtype: str, strides: Strides) -> Operand:
        return Operand(dtype, "read", product([const(1)]) + sum((as_expr(s) for s in strides), const(0)))


def _address(strides: Strides) -> Expr:
    return sum((var(f"d{i}") * as_expr(s) for i, s in enumerate(strides)), const(0))


def _load(dtype: str, operand: int, strides: Strides, offset: int) -> Instr:
    return Instr("load", (), dtype, (("address", _address(strides) + offset), ("operand", operand)))


def packed(spec: KernelSpec, operand: int) -> KernelSpec:
    """``spec`` with an operand in the role in which its schedules are chosen."""
    operands = (replace(o, role="packed") if i == operand else o for i, o in enumerate(spec.operands))
    return replace(spec, operands=tuple(operands))


class Runner:
    """A case compiled once; ``check`` runs it for given sizes and compares with float64 (integers: exactly).

    ``plan``: the schedule, asked for as plans do where an operand is packed.
    """

    def __init__(
        self,
        case: Case,
        pack: int | None = None,
        target: Target = HOST,
        plan: Schedule | None = None,
        rewrite: Rewrite | None = None,
    ) -> None:
        self.case, self.pack = case, pack
        spec = case.spec()
        self.attributes: dict[str, object] = {}
        if pack is not None:
            found = packing(spec, [pack], target, {packed(spec, pack).key(): plan} if plan else None)
            assert not isinstance(found, str), found
            spec, self.attributes, self.derivation = found.spec, dict(found.attributes), found.function
            assert plan is None or spec.schedule == plan
        elif plan is not None:
            spec = replace(spec, schedule=plan)
        self.kernel = Kernel(spec, target, rewrite)

    def check(self, threads: int = 1, *, in_place: bool = False, **symbols: int) -> None:
        """``in_place``: the result is written over ``bias``, which has the strides of the output."""
        case = self.case
        sizes, lhs, rhs, out, bias = (
            [as_expr(s).evaluate(symbols) for s in text or ()]
            for text in (case.sizes, case.lhs, case.rhs, case.out, case.bias)
        )
        parallel = len(sizes) - case.sums
        a, b = (_fill(case.dtype, sizes, strides, case.offset) for strides in (lhs, rhs))
        tensors = [a, b]
        if case.bias is not None:
            tensors.append(_fill(case.accumulator, sizes[:parallel], bias, 0))
        result = TORCH_DTYPES[case.result or case.dtype]
        extent = 1 + sum((s - 1) * t for s, t in zip(sizes, out, strict=False) if s > 0)
        poison = float("nan") if result.is_floating_point else 77
        shift = tensors[2].clone() if case.bias is not None else None
        memory = tensors[2] if in_place else torch.full((max(extent, 1),), poison, dtype=result)
        wide = torch.float64 if result.is_floating_point else torch.int64
        left, right = (
            (t.view(torch.uint8) if number == case.unsigned else t).as_strided(sizes, strides, case.offset).to(wide)
            for number, (t, strides) in enumerate(((a, lhs), (b, rhs)))
        )
        summed = list(range(parallel, len(sizes)))
        expected, size = _sums(left, right, summed)
        if shift is not None:
            added = shift.as_strided(sizes[:parallel], bias[:parallel])
            expected, size = expected + added, size + added.abs()
        if case.relu:
            expected = expected.relu()
        if self.pack is not None:
            tensors[self.pack] = derive(self.derivation, tensors[self.pack], self.attributes)
        scratch = [
            torch.full((o.size.constant or 0,), float("nan")) for o in self.kernel.spec.operands[len(tensors) + 1 :]
        ]
        self.kernel([*tensors, memory, *scratch], [symbols[s] for s in self.kernel.spec.symbols], threads)
        got = memory.as_strided(sizes[:parallel], out[:parallel])
        if not result.is_floating_point:
            assert torch.equal(got, expected.to(result)), (symbols, sizes)
            return
        # Rounding of a sum of K products grows at most with K (Higham, ch. 3); 8 covers K up to a few hundred in practice.
        steps = {"f64": 2.0**-52, "f32": 2.0**-23}[case.accumulator]
        bound = 8 * steps * size + torch.finfo(result).eps * expected.abs() + 1e-30
        wrong = ~((got.double() - expected).abs() <= bound)
        assert not wrong.any(), (symbols, sizes, wrong.nonzero()[:4].tolist(), got[wrong][:4], expected[wrong][:4])


def _sums(left: torch.Tensor, right: torch.Tensor, summed: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Over ``summed`` of the products and of their magnitudes; a few rows at a time, as all products at once may take gigabytes."""
    if 0 in summed:
        return (left * right).sum(summed), (left * right).abs().sum(summed)
    rows = max(1, _AT_ONCE * left.shape[0] // max(left.numel(), 1))
    found = []
    for a, b in zip(left.split(rows), right.split(rows), strict=True):
        products = a * b
        found.append((products.sum(summed), products.abs_().sum(summed)))
    expected, size = (torch.cat(parts) for parts in zip(*found, strict=True))
    return expected, size


def _fill(dtype: str, sizes: Sequence[int], strides: Sequence[int], offset: int) -> torch.Tensor:
    """Random memory just large enough for the view, so that a read beyond it can be seen by a checking allocator."""
    extent = offset + 1 + sum((s - 1) * t for s, t in zip(sizes, strides, strict=False) if s > 0)
    count, kind = max(extent, 1), TORCH_DTYPES[dtype]
    if kind.is_floating_point:
        return torch.randn(count).to(kind)
    limit = 128 if dtype == "i8" else 50
    return torch.randint(0, 2, (count,)).bool() if dtype == "i1" else torch.randint(-limit, limit, (count,), dtype=kind)
