"""What both kernels that leave out weights share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.body import Body
from effc.compiler.codegen.cpu.contraction.epilogue import Epilogue
from effc.compiler.codegen.cpu.lowp import held_as, to_f32
from effc.compiler.codegen.cpu.skipping.choice import unit_cycles
from effc.compiler.codegen.cpu.skipping.form import Form
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.expr import const
from effc.compiler.ir.spec import KernelSpec

#: Of a cache.
LINE_BYTES = 64


class SkippingKernel(ABC):
    """Emits ``spec``. A unit is a run of ``width`` columns."""

    def __init__(self, spec: KernelSpec, form: Form, target: Target) -> None:
        self.spec, self.form, self.nest, self.target = spec, form, form.nest, target
        self.lanes = target.lanes(4)
        self.width = int(spec.schedule["width"])
        self.b = Builder()

    def text(self) -> str:
        units = -(-self.form.columns // self.width)
        cycles = unit_cycles(self.form, self.width, self.lanes)
        with parallel_kernel(self.b, self.spec, const(units), const(cycles)) as share:
            self.share = share
            self.body = Body(
                self.b, self.nest.spec, self.target, share.pointer, share.symbols, lambda: share.error_cell
            )
            self.epilogue = Epilogue(self.b, self.nest, self.body)
            self.row = self._row()
            self._units(share)
        return self.b.text()

    @abstractmethod
    def _units(self, share: Share) -> None:
        """All units of a thread."""

    def _place(self, pointer: Value, index: Value) -> Value:
        """Where element ``index`` of a factor lies."""
        return self.b.element_pointer(pointer, index, held_as(self.form.dtype))

    def _floats(self, pointer: Value, mask: Value | None = None, lanes: int | None = None) -> Value:
        """As float32: of a factor's elements from ``pointer`` on a vector, zeros where ``mask`` is false, or as many as ``lanes``."""
        b, zero = self.b, self.b.constant(0, held_as(self.form.dtype), lanes or self.lanes)
        found = b.load(pointer, zero.type) if mask is None else b.masked_load(pointer, mask, zero)
        return found if self.form.dtype == "f32" else to_f32(b, found, self.form.dtype, self.target)

    def _row(self) -> Value:
        """Where the row of activations lies."""
        nest, b = self.nest, self.b
        zeros = {f"d{i}": b.index(0) for i in range(len(nest.spec.dims))}
        offset = scalar_expr(b, nest.address(nest.left.load), {**self.share.symbols, **zeros})
        return self._place(self.share.pointer(nest.left.operand), offset)

    def _mask(self, column: Value) -> Value | None:
        """Of the lanes from ``column`` on that are columns; None where all are, whatever the vector."""
        if self.form.columns % self.width == 0:
            return None
        return self.b.first_lanes(self.lanes, self.b.maximum(self.b.sub(self.b.index(self.form.columns), column), 0))

    def _write(self, column: Value, sums: list[Value]) -> None:
        """All that follows the sums of the vectors of columns from ``column`` on."""
        columns = [self.b.add(column, j * self.lanes) for j in range(len(sums))]
        masks = [self._mask(c) for c in columns]
        known = [m for m in masks if m is not None]
        self.epilogue.write({}, [self.b.index(0)], columns, known or None, [sums])
