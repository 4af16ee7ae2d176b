"""What all sparse methods share: units of work, and where their operands lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from effc.compiler.codegen.cpu.access import memory_type
from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.body import Body
from effc.compiler.codegen.cpu.sparse.count import unit_cycles
from effc.compiler.codegen.cpu.sparse.form import Form
from effc.compiler.codegen.cpu.sparse.plan import MOST_THREADS, Plan
from effc.compiler.codegen.cpu.sparse.walk import Stored
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.expr import Expr, as_expr, const, product
from effc.compiler.ir.spec import KernelSpec


class ProductKernel(ABC):
    """Emits ``spec``, a product that has a ``form``."""

    share: Share

    def __init__(self, spec: KernelSpec, form: Form, target: Target) -> None:
        self.spec, self.form, self.target = spec, form, target
        self.nest, self.element = form.nest, memory_type(form.dtype)
        self.b = Builder()

    @abstractmethod
    def text(self) -> str:
        """The kernel's module."""

    @abstractmethod
    def _body(self, share: Share) -> None:
        """All units of a thread."""

    def _new_body(self) -> Body:
        share = self.share
        return Body(self.b, self.nest.spec, self.target, share.pointer, share.symbols, lambda: share.error_cell)

    def _indices(self, number: Value, names: Sequence[tuple[str, Expr]]) -> dict[str, Value]:
        """The index along each of ``names``, the last of which runs fastest, of item ``number``."""
        b, at = self.b, {}
        for name, size in reversed(names):
            count = b.maximum(self._value(size), 1)  # an empty one has no units, but is divided by
            at[name] = b.rem(number, count)
            number = b.div(number, count)
        return at

    def _outer_axes(self) -> list[tuple[str, Expr]]:
        return [(f"d{i}", self.nest.spec.dims[i].size) for i in self.nest.outer]

    def _lines(self, outer: Mapping[str, Value], first: Value, rows: int) -> list[Value]:
        """Where ``rows`` rows of the dense factor lie, from row ``first`` on."""
        base = self._left({**outer, **self._named(self.nest.row, first)})
        stride = self._value(self.nest.stride(self.nest.left.load, self.nest.row))
        return [self.b.element_pointer(base, self.b.mul(stride, i), self.element) for i in range(rows)]

    def _masks(self, columns: Sequence[Value], width: int, lanes: int) -> list[Value] | None:
        """Of the ``lanes`` from each of ``columns`` on those that are columns, where the last panel of ``width`` has others."""
        b, count = self.b, self.form.columns
        if count % width == 0:
            return None
        return [b.first_lanes(lanes, b.maximum(b.sub(b.index(count), c), 0)) for c in columns]

    def _left(self, at: Mapping[str, Value]) -> Value:
        """Where the dense factor lies at a point of the parallel dims, at the start of the sum."""
        nest, b = self.nest, self.b
        dims = {f"d{i}": b.index(0) for i in range(len(nest.spec.dims))}
        offset = scalar_expr(b, nest.address(nest.left.load), {**self.share.symbols, **dims, **at})
        return b.element_pointer(self.share.pointer(nest.left.operand), offset, self.element)

    def _value(self, expr: Expr) -> Value:
        return scalar_expr(self.b, expr, self.share.symbols)

    def _named(self, dim: int | None, index: Value) -> dict[str, Value]:
        return {} if dim is None else {f"d{dim}": index}


class SparseKernel(ProductKernel):
    """A product by ``plan``. A unit is a tile of rows and a share of the columns."""

    def __init__(self, spec: KernelSpec, plan: Plan, target: Target) -> None:
        super().__init__(spec, plan.form, target)
        self.plan = plan

    def text(self) -> str:
        plan = self.plan
        units = product([plan.form.outer, plan.tiles, const(plan.shares)])
        most = MOST_THREADS if plan.share_elements else None
        with parallel_kernel(self.b, self.spec, units, as_expr(unit_cycles(plan)), most=most) as share:
            self.share = share
            self.stored = Stored(self.b, plan, share.pointer(self.nest.right.operand))
            self._body(share)
        return self.b.text()
