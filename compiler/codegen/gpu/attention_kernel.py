"""The kernel of an attention, or of a part of its keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch_mlir import ir

from effc.compiler.codegen.gpu.attention import Plan
from effc.compiler.codegen.gpu.attention_parts import places
from effc.compiler.codegen.gpu.body import Axis, Frame, combiner
from effc.compiler.codegen.gpu.builder import Builder, Shape
from effc.compiler.codegen.gpu.indices import Step, address_dtype, evaluated
from effc.compiler.codegen.gpu.launch import Arguments, blocks
from effc.compiler.codegen.gpu.ops import Ops
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.expr import Expr, var

_LOG2E, _LN2 = math.log2(math.e), math.log(2.0)


class Attention:
    """``emit`` writes the kernel where the builder stands."""

    def __init__(self, b: Builder, plan: Plan, target: GpuTarget, given: Arguments) -> None:
        self.b, self.plan, self.spec, self.target, self.given = b, plan, plan.spec, target, given
        self.ops = Ops(b)
        self.dtype = self.spec.operands[0].dtype
        names = ["q", "k", "v", "out", *(n for n in ("mask", "lse") if self.spec.get(n) is not None)]
        self.operand = {name: i for i, name in enumerate(names)}

    def _size(self, e: Expr) -> ir.Value:
        return evaluated(self.b, e, self.given.symbols)

    def emit(self) -> None:
        b, plan = self.b, self.plan
        self._place()
        rows = self._rows()
        q = [self._load("q", rows, channels, (plan.bm, plan.chunk)) for channels in self._chunks(1)]
        scale = b.constant(float(self.spec.get("scale")) * _LOG2E, "f32")
        start = [
            b.constant("-inf", "f32", (plan.bm, 1)),
            b.constant(0, "f32", (plan.bm, 1)),
            b.constant(0, "f32", (plan.bm, plan.be)),
        ]
        low, plain, high = self._keys(rows)

        block = partial(self._block, q, scale, rows)
        state = b.loop(low, plain, plan.bn, start, partial(block, masked=False))
        state = b.loop(plain, high, plan.bn, state, partial(block, masked=True))
        self._finish(rows, state)

    # -- which rows and keys ------------------------------------------------------------------------------------------
    def _place(self) -> None:
        """Row block, heads, batch and part of this program; the scalars are those of the first of its heads."""
        b, plan = self.b, self.plan
        program = b.program_id()

        def digit(size: Expr) -> ir.Value:
            nonlocal program
            count = self._size(size)
            found, program = b.op("arith.remsi", program, count), b.op("arith.divsi", program, count)
            return found

        # The last rows of a causal attention see most keys: they start first.
        row_blocks = blocks(plan.rows, plan.bm)
        last = self._size(row_blocks - 1)
        self.row_block = b.op("arith.subi", last, digit(row_blocks))
        self.head = b.op("arith.muli", digit(plan.head_blocks), b.constant(plan.heads, "i32"))
        self.batch = digit(self.spec.dims[0].size)
        self.part = program
        self.scalars = {**self.given.symbols, "d0": self.batch, "d1": self.head}

    def _rows(self) -> Axis:
        b, plan = self.b, self.plan
        start = b.op("arith.muli", self.row_block, b.constant(plan.bm, "i32"))
        index = b.op("arith.addi", start, b.range(plan.bm, 0, 2))
        self.row_start, self.row = start, index
        queries = self._size(self.spec.dims[2].size)
        self.row_scalars = dict(self.scalars)
        mask = b.compare("arith.cmpi", "slt", index, self._size(plan.rows))
        if plan.heads > 1:
            self.row_scalars["d1"] = b.op("arith.addi", self.head, b.op("arith.divsi", index, queries))
            index = b.op("arith.remsi", index, queries)
        self.query = index
        return Axis((2,), index, mask)

    def _keys(self, rows: Axis) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The first key, the first of a block that needs a mask, and the end, of this program."""
        b, plan, keys = self.b, self.plan, self.spec.dims[3].size
        each = blocks(blocks(keys, plan.bn), plan.split) * plan.bn
        low: ir.Value = b.constant(0, "i32")
        high = self._size(keys)
        if plan.split > 1:
            low = b.op("arith.muli", self.part, self._size(each))
            high = b.op("arith.minsi", b.op("arith.addi", low, self._size(each)), high)
        whole = b.constant(plan.bn, "i32")
        plain = b.op("arith.muli", b.op("arith.divsi", high, whole), whole)
        if self.spec.get("causal"):
            # Rows of several heads start anywhere: no block is known to lie below the diagonal of all.
            first = self.row_start if plan.heads == 1 else b.constant(0, "i32")
            below = b.op("arith.muli", b.op("arith.divsi", first, whole), whole)
            plain = b.op("arith.minsi", plain, below)
            if plan.heads == 1:
                end = b.op("arith.addi", self.row_start, b.constant(plan.bm, "i32"))
                high = b.op("arith.minsi", high, end)
        plain = b.op("arith.maxsi", plain, low)
        return low, plain, high

    def _out_channels(self, axis: int) -> Axis:
        b, size = self.b, self.spec.dims[5].size
        index = b.range(self.plan.be, axis, 2)
        inside = size.constant == self.plan.be
        return Axis((5,), index, None if inside else b.compare("arith.cmpi", "slt", index, self._size(size)))

    def _chunks(self, axis: int) -> list[Axis]:
        """The channels of q and k, in pieces that a product takes at once."""
        b, size, block = self.b, self.spec.dims[4].size, self.plan.chunk
        found = []
        for start in range(0, self.plan.bd, block):
            index = b.op("arith.addi", b.range(block, axis, 2), b.constant(start, "i32"))
            inside = (size.constant or 0) >= start + block
            found.append(Axis((4,), index, None if inside else b.compare("arith.cmpi", "slt", index, self._size(size))))
        return found

    def _key_axis(self, start: ir.Value, axis: int, masked: bool) -> Axis:
        b, block = self.b, self.plan.bn
        local = b.range(block, axis, 2)
        index = b.op("arith.addi", start, local)
        mask = None
        if masked:
            left = b.op("arith.subi", self._size(self.spec.dims[3].size), start)
            mask = b.compare("arith.cmpi", "slt", local, left)
        return Axis((3,), index, mask, Step(start, local, block))

    # -- memory -------------------------------------------------------------------------------------------------------
    def _frame(self, first: Axis, second: Axis) -> Frame:
        scalars = self.row_scalars if 2 in (*first.dims, *second.dims) else self.scalars
        return Frame(self.b, self.spec, (first, second), scalars)

    def _pointers(self, name: str, frame: Frame) -> ir.Value:
        operand, address = self.operand[name], self.spec.get(name)
        base = self.given.operands[operand]
        moving, still = frame.indices.split(address, address_dtype(self.spec, operand, address))
        return self.b.pointers(base if moving is None else self.b.pointers(base, moving), still)

    def _load(self, name: str, first: Axis, second: Axis, shape: Shape) -> ir.Value:
        frame = self._frame(first, second)
        pointers = self.b.spread(self._pointers(name, frame), shape)
        return self.b.load(pointers, frame.mask(shape, self.b))

    # -- blocks of keys -----------------------------------------------------------------------------------------------
    def _block(
        self, q: Sequence[ir.Value], scale: ir.Value, rows: Axis, at: ir.Value, state: Sequence[ir.Value], masked: bool
    ) -> list[ir.Value]:
        """Maxima, sums and results of the rows after one more block of keys."""
        b, plan = self.b, self.plan
        highest, total, result = state
        shape = (plan.bm, plan.bn)
        score = b.constant(0, "f32", shape)
        for part, channels in zip(q, self._chunks(0), strict=True):
            k = self._load("k", channels, self._key_axis(at, 1, masked), (plan.chunk, plan.bn))
            score = b.dot(part, k, score, tf32=self.target.tf32)
        score = self._masked(b.op("arith.mulf", score, scale), rows, self._key_axis(at, 1, masked), masked)
        (most,) = b.reduce([score], 1, combiner(self.ops, "max", "f32"))
        new = self.ops.extremum(True, highest, most)
        # Of a row that has seen nothing yet the maximum is -inf, and -inf less -inf is NaN.
        nothing = b.compare("arith.cmpf", "oeq", new, b.constant("-inf", "f32"))
        shift = b.select(nothing, b.constant(0, "f32"), new)
        power = b.op("math.exp2", b.op("arith.subf", score, shift))
        factor = b.op("math.exp2", b.op("arith.subf", highest, shift))
        (added,) = b.reduce([power], 1, combiner(self.ops, "add", "f32"))
        total = b.op("arith.addf", b.op("arith.mulf", total, factor), added)
        v = self._load("v", self._key_axis(at, 0, masked), self._out_channels(1), (plan.bn, plan.be))
        if self.dtype != "f32":
            power = b.op("arith.truncf", power, dtype=self.dtype)
        result = b.dot(power, v, b.op("arith.mulf", result, factor), tf32=self.target.tf32)
        return [new, total, result]

    def _masked(self, score: ir.Value, rows: Axis, keys: Axis, masked: bool) -> ir.Value:
        b = self.b
        allowed: ir.Value | None = keys.mask
        if masked and self.spec.get("causal"):
            allowed = b.both(allowed, b.compare("arith.cmpi", "sle", keys.index, self.query))
        if self.spec.get("mask") is not None:
            dtype = self.spec.operands[self.operand["mask"]].dtype
            frame = self._frame(rows, keys)
            pointers = self._pointers("mask", frame)
            shape = (self.plan.bm, self.plan.bn)
            given = b.load(b.spread(pointers, shape), frame.mask(shape, b))
            if dtype == "i1":
                allowed = b.both(allowed, b.compare("arith.cmpi", "ne", given, b.constant(0, "i8")))
            else:
                wide = self.ops.cast("arith.extf", given, "f32")
                score = b.op("arith.addf", score, b.op("arith.mulf", wide, b.constant(_LOG2E, "f32")))
        return score if allowed is None else b.select(allowed, score, b.constant("-inf", "f32"))

    # -- results ------------------------------------------------------------------------------------------------------
    def _finish(self, rows: Axis, state: Sequence[ir.Value]) -> None:
        b, plan = self.b, self.plan
        highest, total, result = state
        channels = self._out_channels(1)
        if plan.split > 1:
            self._store_part(rows, channels, state)
            return
        nothing = b.compare("arith.cmpf", "oeq", highest, b.constant("-inf", "f32"))
        quotient = b.precise(result, total)
        if not self.spec.get("nan", 0):
            quotient = b.select(nothing, b.constant(0, "f32"), quotient)
        frame = self._frame(rows, channels)
        shape = (plan.bm, plan.be)
        value = self.ops.cast("arith.truncf", quotient, self.spec.operands[3].dtype)
        b.store(self._pointers("out", frame), value, frame.mask(shape, b))
        if self.spec.get("lse") is not None:
            log = b.op("arith.addf", b.op("arith.mulf", highest, b.constant(_LN2, "f32")), b.extern("__nv_logf", total))
            log = b.select(nothing, b.constant("nan" if self.spec.get("nan", 0) else 0, "f32"), log)
            b.store(self._pointers("lse", frame), log, rows.mask)

    def _store_part(self, rows: Axis, channels: Axis, state: Sequence[ir.Value]) -> None:
        """Results, maxima and sums into scratch memory (`attention_parts`)."""
        b, plan = self.b, self.plan
        frame = self._frame(rows, channels)
        _, h, q, _, _, e = (d.size for d in self.spec.dims)
        places_ = places(plan)
        row = ((var("d0") * h + var("d1")) * q + var("d2")) + var("part") * plan.all_rows
        values = {**frame.indices.values, "part": self.part}
        for start, value, address in zip(
            places_, (state[2], state[0], state[1]), (row * e + var("d5"), row, row), strict=True
        ):
            pointers = b.pointers(self.given.scratch, evaluated(b, start + address, values))
            mask = frame.mask((plan.bm, plan.be), b) if value is state[2] else rows.mask
            b.store(pointers, value, mask)
