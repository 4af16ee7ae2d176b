"""Products with a weight that holds zeros in a pattern, through kernels that leave them out, against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from contraction_cases import Case, packed
from kernels import HOST, Kernel

from effc.compiler.codegen.cpu.schedules import Packing, packing
from effc.compiler.codegen.cpu.sparse.choice import AnyPlan, plans
from effc.compiler.codegen.cpu.sparse.form import find
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.derive import derive
from effc.runtime.sparse_panels import stored_blocks


def pruned(n: int, k: int, rows: int, columns: int, density: float) -> torch.Tensor:
    """A random matrix ``[n, k]`` of which about a part ``density`` of the blocks is not zero."""
    kept = torch.rand(-(-n // rows), -(-k // columns)) < density
    mask = kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[:n, :k]
    return torch.randn(n, k) * mask


def sparsity(weight: torch.Tensor, rows: int, columns: int) -> Sparsity:
    return Sparsity(rows, columns, int(stored_blocks(weight, rows, columns).sum()))


class Product:
    """``relu(x @ weight.T + bias)``, compiled once for one or any number of rows ``m`` (None). ``pattern``: rows and columns of the blocks
    of ``weight``, or what kernels may rely on.

    ``planes``: ``x`` is ``[k][m]`` in memory, else ``[m][k]``; ``by_columns``: the result is ``[m][n]``, else ``[n][m]``. ``choose``: which
    of the plans is used.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        pattern: tuple[int, int] | Sparsity,
        m: int | None,
        *,
        planes: bool = False,
        by_columns: bool = True,
        target: Target = HOST,
        choose: Callable[[AnyPlan], bool] = lambda plan: True,
    ) -> None:
        (n, k), rows = weight.shape, "s0" if m is None else m
        self.weight, self.m, self.planes, self.by_columns = weight, m, planes, by_columns
        lhs, out = ((1, 0, rows) if planes else (k, 0, 1)), ((n, 1, 0) if by_columns else (1, rows, 0))
        case = Case((rows, n, k), 1, lhs, (0, k, 1), out, bias=(0, 1, 0), relu=True)
        known = pattern if isinstance(pattern, Sparsity) else sparsity(weight, *pattern)
        self.spec = with_sparsity(case.spec(), known)
        form = find(packed(self.spec, 1), target)
        assert not isinstance(form, str), form
        plan = next(p for p in plans(form, target) if choose(p))
        found = packing(self.spec, [1], target, {packed(self.spec, 1).key(): plan.schedule})
        assert isinstance(found, Packing), found
        assert found.spec.schedule == plan.schedule
        self.packing, self.plan, self.kernel = found, plan, Kernel(found.spec, target)

    def derived(self, weight: torch.Tensor) -> torch.Tensor:
        return derive(self.packing.function, weight, dict(self.packing.attributes))

    def __call__(self, x: torch.Tensor, bias: torch.Tensor, threads: int = 1) -> torch.Tensor:
        """``x`` is ``[m, k]``; all memory that the kernel is to write is NaN before."""
        m, n = len(x), len(self.weight)
        memory = torch.full((m * n + 64,), float("nan"))
        given = x.T.contiguous() if self.planes else x.contiguous()
        scratch = [
            torch.full((o.size.constant or 0,), float("nan")) for o in self.kernel.spec.operands if o.role == "scratch"
        ]
        tensors = [given, self.derived(self.weight), bias, memory, *scratch]
        assert self.kernel(tensors, [m] if self.m is None else [], threads) == 0
        assert memory[m * n :].isnan().all(), "nothing behind the result is written"
        return memory[: m * n].view(m, n) if self.by_columns else memory[: m * n].view(n, m).T

    def check(self, m: int | None = None, threads: int = 1) -> None:
        n, k = self.weight.shape
        count = self.m if m is None else m
        assert count is not None
        x, bias = torch.randn(count, k), torch.randn(n)
        got, wide = self(x, bias, threads), self.weight.double()
        expected = (x.double() @ wide.T + bias).relu()
        size = x.double().abs() @ wide.abs().T + bias.abs()
        wrong = ~((got - expected).abs() <= 8 * 2.0**-23 * size + 1e-30)
        assert not wrong.any(), (self.plan, wrong.nonzero()[:4].tolist(), got[wrong][:4], expected[wrong][:4])


@dataclass(frozen=True)
class Full(Case):
    """A case whose second factor has no zeros, and is sparse nevertheless, by blocks of ``pattern``."""

    pattern: tuple[int, int] = (1, 1)

    @staticmethod
    def of(case: Case, pattern: tuple[int, int]) -> Full:
        return Full(**{f.name: getattr(case, f.name) for f in fields(case)}, pattern=pattern)

    def spec(self) -> KernelSpec:
        spec = super().spec()
        form = find(packed(with_sparsity(spec, Sparsity(1, 1, 0)), 1), HOST)
        assert not isinstance(form, str), form
        rows, columns = self.pattern
        return with_sparsity(spec, Sparsity(rows, columns, -(-form.columns // rows) * -(-form.sum // columns)))


def with_sparsity(spec: KernelSpec, found: Sparsity) -> KernelSpec:
    """``spec`` with a second operand of which this is known."""
    operands = tuple(replace(o, sparsity=found) if i == 1 else o for i, o in enumerate(spec.operands))
    return replace(spec, operands=operands)
