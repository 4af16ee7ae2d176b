"""Pairs of products as specs written by hand, ``block`` kernels of two stages, and what they compute, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from kernels import instr

from effc.compiler.ir.expr import as_expr, const
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand
from effc.runtime.dtypes import TORCH_DTYPES

X, RIGHT, LEFT, BIAS, SKIP, OUT, BETWEEN, NORMED = range(8)


@dataclass(frozen=True)
class PairCase:
    """``act(x [m, k] @ right [h, k].T) @ left [n, h].T + bias + skip``; ``act``: an op of ``math`` behind a bias, or ``""``: low-rank
    factors. Between the products everything is rounded to ``dtype``, as is the result. ``norm``: of ``x``, each row is divided by the root
    of its mean square first.
    """

    m: int
    k: int
    h: int
    n: int
    dtype: str = "f32"
    act: str = ""
    norm: bool = False

    def spec(self) -> KernelSpec:
        sizes = (self.m * self.k, self.h * self.k, self.n * self.h, self.n, self.m * self.n, self.m * self.n)
        roles = ("read",) * 5 + ("write",)
        operands = [Operand(self.dtype, role, const(size)) for role, size in zip(roles, sizes, strict=True)]
        operands += [Operand(self.dtype, "scratch", const(0))] * (2 if self.norm else 1)
        first = [*self._product(f"{self.k}*d0 + d2", NORMED if self.norm else X, f"{self.k}*d1 + d2", RIGHT)]
        value = len(first) - 1
        if self.act:
            first += [instr("constant", value=0.5, dtype="f32"), instr("arith.addf", value, value + 1, dtype="f32")]
            first.append(instr(self.act, len(first) - 1, dtype="f32"))
        second = [*self._product(f"{self.h}*d0 + d2", BETWEEN, f"{self.h}*d1 + d2", LEFT)]
        for operand, address in ((BIAS, "d1"), (SKIP, f"{self.n}*d0 + d1")):
            total = len(second) - 1
            loaded = self._loaded(address, operand, len(second))
            second += [*loaded, instr("arith.addf", total, total + len(loaded), dtype="f32")]
        stages = (
            self._stage(first, BETWEEN, f"{self.h}*d0 + d1", (self.m, self.h, self.k), operands),
            self._stage(second, OUT, f"{self.n}*d0 + d1", (self.m, self.n, self.h), operands),
        )
        before = (self._normed(operands),) if self.norm else ()
        return KernelSpec("block", (), tuple(operands), (), stages=(*before, *stages))

    def _normed(self, operands: list[Operand]) -> KernelSpec:
        body = self._loaded(f"{self.k}*d0 + d1", X, 0)
        x = len(body) - 1
        body += [
            instr("arith.mulf", x, x, dtype="f32"),
            instr("reduce", x + 1, kind="add", dtype="f32"),
            instr("constant", value=1.0 / self.k, dtype="f32"),
            instr("arith.mulf", x + 2, x + 3, dtype="f32"),
            instr("math.rsqrt", x + 4, dtype="f32"),
            instr("arith.mulf", x, x + 5, dtype="f32"),
        ]
        if self.dtype != "f32":
            body.append(instr("arith.truncf", x + 6, dtype=self.dtype))
        body.append(instr("store", len(body) - 1, operand=NORMED, address=f"{self.k}*d0 + d1"))
        dims = (Dim(const(self.m)), Dim(const(self.k), "reduction"))
        return KernelSpec("loops", dims, tuple(operands), tuple(body))

    def _loaded(self, address: str, operand: int, at: int) -> list[Instr]:
        load = instr("load", dtype=self.dtype, operand=operand, address=address)
        return [load] if self.dtype == "f32" else [load, instr("arith.extf", at, dtype="f32")]

    def _product(self, left: str, x: int, right: str, w: int) -> list[Instr]:
        body = self._loaded(left, x, 0)
        body += self._loaded(right, w, len(body))
        return [*body, instr("contract", len(body) // 2 - 1, len(body) - 1, dtype="f32")]

    def _stage(
        self, body: list[Instr], out: int, address: str, sizes: tuple[int, int, int], operands: list[Operand]
    ) -> KernelSpec:
        value = len(body) - 1
        if self.dtype != "f32":
            body.append(instr("arith.truncf", value, dtype=self.dtype))
        body.append(instr("store", len(body) - 1, operand=out, address=address))
        dims = tuple(
            Dim(as_expr(s), kind) for s, kind in zip(sizes, ("parallel", "parallel", "reduction"), strict=True)
        )
        return KernelSpec("contraction", dims, tuple(operands), tuple(body))

    def tensors(self) -> list[torch.Tensor]:
        sizes = (self.m * self.k, self.h * self.k, self.n * self.h, self.n, self.m * self.n, self.m * self.n)
        dtype = TORCH_DTYPES[self.dtype]
        made = [torch.randn(size) for size in sizes]
        made[RIGHT] /= self.k**0.5
        made[LEFT] /= self.h**0.5
        made[OUT].fill_(float("nan"))
        return [t.to(dtype) for t in (*made, *[torch.empty(1)] * (2 if self.norm else 1))]

    def expected(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """Float64 ``[m * n]``; what lies between is rounded as the kernel does."""
        x, right, left, bias, skip, *_ = (t.double() for t in tensors)
        rows = x.view(self.m, self.k)
        if self.norm:
            rows = (rows * rows.square().mean(1, keepdim=True).rsqrt()).to(tensors[X].dtype).double()
        hidden = rows @ right.view(self.h, self.k).T
        if self.act:
            hidden = getattr(torch, self.act.split(".")[1])(hidden + 0.5)
        hidden = hidden.to(tensors[BETWEEN].dtype).double() if self.dtype != "f32" else hidden
        return (hidden @ left.view(self.n, self.h).T + bias + skip.view(self.m, self.n)).flatten()
