"""Blocks of two products of the same rows, compiled once, against float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from kernels import HOST, Kernel, Rewrite

from effc.compiler.codegen.cpu.block.choice import Block, block_of
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr, as_expr
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand
from effc.runtime.derive import derive
from effc.runtime.dtypes import TORCH_DTYPES

#: Operands: the rows, both weights with their biases, the result, what is added to it, and last the intermediate.
X, FIRST, FIRST_BIAS, SECOND, SECOND_BIAS, RESULT, RESIDUAL, BETWEEN = range(8)


def pair(m: int, k: int, r: int, n: int, dtype: str = "f32") -> KernelSpec:
    """``relu(x @ a.T + p) @ b.T + q + residual``: ``x`` ``[m][k]``, ``a`` ``[r][k]``, ``b`` ``[n][r]``; sums and biases are f32."""
    rows = as_expr(m)
    sizes: list[Expr | int] = [rows * k, r * k, r, n * r, n, rows * n, rows * n, 0]
    dtypes = [dtype, dtype, "f32", dtype, "f32", "f32", "f32", dtype]
    roles = ["read"] * 5 + ["write", "read", "scratch"]
    operands = tuple(Operand(d, role, as_expr(s)) for d, role, s in zip(dtypes, roles, sizes, strict=True))
    relu = [Instr("constant", (), "f32", (("value", 0.0),)), Instr("arith.maximumf", (-2, -1), "f32")]
    added = [_load("f32", RESIDUAL, f"{n}*d0 + d1"), Instr("arith.addf", (-2, -1), "f32")]
    first = _stage(rows, k, r, (X, FIRST, FIRST_BIAS, BETWEEN), dtype, dtype, relu)
    second = _stage(rows, r, n, (BETWEEN, SECOND, SECOND_BIAS, RESULT), dtype, "f32", added)
    stages = tuple(KernelSpec("contraction", dims, operands, tuple(body)) for dims, body in (first, second))
    return KernelSpec("block", (), operands, (), stages=stages)


def _stage(
    rows: Expr, k: int, n: int, operands: tuple[int, int, int, int], dtype: str, result: str, after: list[Instr]
) -> tuple[tuple[Dim, ...], list[Instr]]:
    """Dims and body of a product with a bias; negative arguments of ``after`` count back from the instruction itself."""
    left, right, bias, out = operands
    body = [_load(dtype, left, f"{k}*d0 + d2")]
    body += [Instr("arith.extf", (0,), "f32")] if dtype != "f32" else []
    at = len(body)
    body.append(_load(dtype, right, f"{k}*d1 + d2"))
    body += [Instr("arith.extf", (at,), "f32")] if dtype != "f32" else []
    body += [Instr("contract", (at - 1, len(body) - 1), "f32"), _load("f32", bias, "d1")]
    body.append(Instr("arith.addf", (len(body) - 2, len(body) - 1), "f32"))
    for instr in after:
        body.append(Instr(instr.op, tuple(len(body) + a for a in instr.args), instr.dtype, instr.attributes))
    if result != "f32":
        body.append(Instr("arith.truncf", (len(body) - 1,), result))
    address = as_expr(f"{n}*d0 + d1")
    body.append(Instr("store", (len(body) - 1,), "", (("address", address), ("operand", out))))
    return (Dim(rows), Dim(as_expr(n)), Dim(as_expr(k), "reduction")), body


def _load(dtype: str, operand: int, address: str) -> Instr:
    return Instr("load", (), dtype, (("address", as_expr(address)), ("operand", operand)))


class Pair:
    """``pair(m, k, r, n)`` compiled."""

    def __init__(
        self,
        m: int,
        k: int,
        r: int,
        n: int,
        dtype: str = "f32",
        target: Target = HOST,
        rewrite: Rewrite | None = None,
    ) -> None:
        self.sizes, self.dtype = (m, k, r, n), TORCH_DTYPES[dtype]
        found = block_of(pair(m, k, r, n, dtype), CONSTANTS, target)
        assert isinstance(found, Block), found
        self.block, self.kernel = found, Kernel(found.spec, target, rewrite)
        self.a, self.b = torch.randn(r, k).to(self.dtype), torch.randn(n, r).to(self.dtype)
        self.p, self.q = torch.randn(r), torch.randn(n)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor, threads: int = 1) -> torch.Tensor:
        """``x`` is ``[m, k]``; all memory that the kernel is to write is NaN before."""
        m, n = len(x), self.sizes[3]
        memory = torch.full((m * n + 64,), float("nan"))
        scratch = torch.full((self.kernel.spec.operands[BETWEEN].size.constant or 0,), float("nan"), dtype=self.dtype)
        tensors = [x, self.a, self.p, self.b, self.q, memory, residual, scratch]
        for operand, function, attributes in self.block.derivations():
            tensors[operand] = derive(function, tensors[operand], attributes)
        assert self.kernel(tensors, threads=threads) == 0
        assert memory[m * n :].isnan().all(), "nothing behind the result is written"
        return memory[: m * n].view(m, n)

    def check(self, threads: int = 1) -> None:
        count = self.sizes[0]
        x, residual = torch.randn(count, self.sizes[1]).to(self.dtype), torch.randn(count, self.sizes[3])
        got = self(x, residual, threads)
        a, b, wide = self.a.double(), self.b.double(), x.double()
        between = (wide @ a.T + self.p).relu()
        expected = between @ b.T + self.q + residual
        # What the intermediate is off by, each element by its own sum's rounding and that of its dtype, goes through the second product.
        eps = 8 * 2.0**-23
        off = eps * (wide.abs() @ a.abs().T + self.p.abs()) + torch.finfo(self.dtype).eps * between
        size = off @ b.abs().T + eps * (between @ b.abs().T + self.q.abs() + residual.abs())
        wrong = ~((got - expected).abs() <= size + 1e-30)
        assert not wrong.any(), (self.sizes, wrong.nonzero()[:4].tolist(), got[wrong][:4], expected[wrong][:4])


CONSTANTS: Sequence[int] = (FIRST, FIRST_BIAS, SECOND, SECOND_BIAS)
