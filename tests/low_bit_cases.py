"""Linears with quantized weights, as specs written by hand, and what they compute, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from kernels import HOST, Kernel, instr

from effc.compiler.codegen.cpu.schedules import Packing, packing
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import as_expr, const
from effc.compiler.ir.formats import Format
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand, Schedule
from effc.runtime.derive import derive
from effc.runtime.dtypes import TORCH_DTYPES


@dataclass(frozen=True)
class Linear:
    """``x [m, k] @ w [n, k].T + bias``: ``w`` codes of ``format`` (None: int8), in groups of ``group`` (0: one a column).

    ``scale`` and ``zero``: dtypes, ``""`` for none. ``after``: the scale is that of the column and multiplies the sum. ``turned``: codes
    are ``[k, n]``, ``offset`` elements into their tensor, grains ``[groups, n]``.
    """

    m: int | str
    n: int
    k: int
    group: int = 0
    format: Format | None = None
    scale: str = "f32"
    zero: str = ""
    x: str = "f32"
    after: bool = False
    turned: bool = False
    offset = 7

    @property
    def grains(self) -> list[tuple[str, str]]:
        """Op and dtype of what is applied to a code."""
        found = [("arith.subf", self.zero), ("arith.mulf", "" if self.after else self.scale)]
        return [(op, dtype) for op, dtype in found if dtype]

    @property
    def groups(self) -> int:
        return self.k // self.group if self.group else 1

    def spec(self) -> KernelSpec:
        dims = tuple(
            Dim(as_expr(s), kind) for s, kind in ((self.m, "parallel"), (self.n, "parallel"), (self.k, "reduction"))
        )
        operands, body = [(self.x, "read"), ("i8", "read")], list[Instr]()

        def add(instruction: Instr) -> int:
            body.append(instruction)
            return len(body) - 1

        def load(operand: int, address: str) -> int:
            dtype = operands[operand][0]
            value = add(instr("load", dtype=dtype, operand=operand, address=address))
            if dtype == "f32" or operand == 1:
                return value
            return add(instr("arith.sitofp" if dtype == "i8" else "arith.extf", value, dtype="f32"))

        place = f"d1 + d2*{self.n} + {self.offset}" if self.turned else f"d1*{self.k} + d2"
        left, code = load(0, f"d0*{self.k} + d2"), load(1, place)
        value = add(instr("arith.sitofp", code, dtype="f32") if self.format is None else self.format.instr(code))
        group = f"(d2 // {self.group})" if self.group else "0"
        place = f"d1 + {group}*{self.n}" if self.turned else f"d1*{self.groups} + {group}"
        for op, dtype in self.grains:
            operands.append((dtype, "read"))
            value = add(instr(op, value, load(len(operands) - 1, place), dtype="f32"))
        value = add(instr("contract", left, value, dtype="f32"))
        if self.after:
            operands.append((self.scale, "read"))
            value = add(instr("arith.mulf", value, load(len(operands) - 1, "d1"), dtype="f32"))
        operands += [("f32", "read"), ("f32", "write")]
        value = add(instr("arith.addf", value, load(len(operands) - 2, "d1"), dtype="f32"))
        add(instr("store", value, operand=len(operands) - 1, address=f"d0*{self.n} + d1"))
        symbols = (self.m,) if isinstance(self.m, str) else ()
        given = tuple(Operand(dtype, role, const(1)) for dtype, role in operands)
        return KernelSpec("contraction", dims, given, tuple(body), symbols)

    def packing(self, target: Target = HOST) -> Packing | str:
        return packing(self.spec(), range(1, 2 + len(self.grains)), target)


@dataclass(frozen=True)
class Data:
    """``codes``: of the model, one a byte; ``grains``: zero points and scales ``[n, groups]``, then the scale of ``after``."""

    x: torch.Tensor
    codes: torch.Tensor
    grains: list[torch.Tensor]
    bias: torch.Tensor


def random_data(case: Linear, m: int) -> Data:
    low, high = -128, 128
    if case.format is not None:
        signed = case.format.signed and not case.format.codebook
        low = -(1 << (case.format.bits - 1)) if signed else 0
        high = low + (1 << case.format.bits)
    codes = torch.randint(low, high, (case.n, case.k), dtype=torch.int8)
    grains = []
    for op, dtype in [*case.grains, *([("arith.mulf", case.scale)] if case.after else [])]:
        shape = (case.n, case.groups)
        whole = torch.randint(0, 16, shape) if op == "arith.subf" else torch.rand(shape) + 0.1
        if dtype == "i8" and op == "arith.mulf":
            whole = torch.randint(1, 19, shape)
        grains.append(whole.to(TORCH_DTYPES[dtype]))
    x = torch.randint(-128, 128, (m, case.k)) if case.x == "i8" else torch.randn(m, case.k)
    return Data(x.to(TORCH_DTYPES[case.x]), codes, grains, torch.randn(case.n))


def weight(case: Linear, data: Data) -> torch.Tensor:
    """The dequantized weight in float64."""
    value = data.codes.double()
    if case.format is not None:
        numbers = torch.tensor([case.format.value(i) for i in range(1 << case.format.bits)], dtype=torch.float32)
        value = numbers[(data.codes & ((1 << case.format.bits) - 1)).long()].double()
    for (op, _), grain in zip(case.grains, data.grains, strict=False):
        each = grain.double().repeat_interleave(case.k // case.groups, 1)
        value = value - each if op == "arith.subf" else value * each
    return value


class Runner:
    """A case compiled once."""

    def __init__(self, case: Linear, target: Target = HOST, **schedule: int) -> None:
        self.case = case
        found = case.packing(target)
        assert isinstance(found, Packing), found
        if schedule:
            wanted = Schedule(tuple(sorted({**dict(found.spec.schedule.parameters), **schedule}.items())))
            operands = range(1, 2 + len(case.grains))
            key = replace(found.spec, schedule=Schedule()).key()
            again = packing(case.spec(), operands, target, {key: wanted})
            assert isinstance(again, Packing), again
            assert again.spec.schedule == wanted, (again.spec.schedule, wanted)
            found = again
        self.packing = found
        self.kernel = Kernel(found.spec, target)

    def tensors(self, data: Data) -> list[torch.Tensor]:
        """The kernel's arguments, the output last."""
        given = [data.x, data.codes, *data.grains, data.bias]
        for operand, function, attributes in self.packing.derivations():
            given[operand] = derive(function, given[operand], attributes)
            assert given[operand].numel() == self.kernel.spec.operands[operand].size.constant
        return [*given, torch.full((data.x.shape[0], self.case.n), float("nan"))]

    def run(self, data: Data, threads: int = 1) -> torch.Tensor:
        tensors = self.tensors(data)
        symbols = [data.x.shape[0]] if self.kernel.spec.symbols else []
        assert self.kernel(tensors, symbols, threads) == 0
        return tensors[-1]

    def check(self, data: Data, threads: int = 1) -> None:
        """Rounding errors of a sum of K products grow at most with K; 8 covers K up to some thousands in practice."""
        got, w, x = self.run(data, threads).double(), weight(self.case, data), data.x.double()
        sums, size = x @ w.T, x.abs() @ w.abs().T
        if self.case.after:
            factor = data.grains[-1].double().flatten()
            sums, size = sums * factor, size * factor.abs()
        expected = sums + data.bias.double()
        bound = 8 * 2.0**-24 * (size + expected.abs() + data.bias.double().abs()) + 1e-40
        wrong = ~((got - expected).abs() <= bound)
        assert not wrong.any(), (wrong.nonzero()[:4].tolist(), got[wrong][:4], expected[wrong][:4])
