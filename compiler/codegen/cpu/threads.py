"""The kernel entry and its threads, shared by all templates.

``parallel_kernel`` writes three functions: the *body* (the caller's code, over units ``[lo, hi)`` of the outermost
work), the *region* that ``GOMP_parallel`` runs on each thread (it takes a contiguous, balanced share), and the *entry*
``k_<digest>``, which decides how many threads are worth it and runs the body itself where the answer is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.emit import kernel_name
from effc.compiler.codegen.cpu.text import I64, PTR, Builder, Value
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import KernelSpec

#: Cycles of work below which another thread does not pay. A region of torch's warm pool costs 0.8-0.9 µs (about 3,000
#: cycles); a share must be several times that, also because the pool may have gone to sleep.
CYCLES_PER_THREAD = 12_000

_FIRST_OPERAND = 4

#: Most threads of a kernel whose partial results lie on the entry's stack.
MAX_PARTIALS = 16


@dataclass
class Share:
    """What the body of a kernel sees. ``lo``/``hi``: its units; ``index``: which share it is (0 when serial);
    ``partials``: the stack area of ``partial_bytes`` a share, or None.
    """

    builder: Builder
    spec: KernelSpec
    slots: Value
    lo: Value
    hi: Value
    index: Value
    partials: Value
    _pointers: dict[int, Value] = field(default_factory=dict)
    _symbols: dict[str, Value] = field(default_factory=dict)

    def load_slots(self, numbers: Sequence[int] | None = None) -> None:
        """Read all operands' pointers and all symbols, at the top of the function. ``numbers``: which of the kernel's operands each of the
        spec's is, where the spec is a part of it.
        """
        for i, number in enumerate(range(len(self.spec.operands)) if numbers is None else numbers):
            self._pointers[i] = load_slot(self.builder, self.slots, _FIRST_OPERAND + number, PTR)
        self._symbols.update(load_symbols(self.builder, self.spec, self.slots))

    def pointer(self, operand: int) -> Value:
        return self._pointers[operand]

    def place(self, operand: int, pointer: Value) -> None:
        """Let this share see ``operand`` at ``pointer``: memory of its own."""
        self._pointers[operand] = pointer

    @property
    def symbols(self) -> dict[str, Value]:
        """Symbol name → ``i64`` value."""
        return self._symbols

    @property
    def error_cell(self) -> Value:
        return load_slot(self.builder, self.slots, 2, PTR)


def load_slot(b: Builder, slots: Value, index: int, type_: str) -> Value:
    return b.load(b.element_pointer(slots, b.index(index), I64), type_)


def load_symbols(b: Builder, spec: KernelSpec, slots: Value) -> dict[str, Value]:
    first = _FIRST_OPERAND + len(spec.operands)
    return {name: load_slot(b, slots, first + i, I64) for i, name in enumerate(spec.symbols)}


@contextmanager
def parallel_kernel(
    b: Builder,
    spec: KernelSpec,
    units: Expr,
    cycles_per_unit: Expr,
    partial_bytes: int = 0,
    finish: Callable[[Share], None] | None = None,
    most: int | None = None,
) -> Iterator[Share]:
    """Write the kernel of ``spec``; the ``with`` body emits the work of units ``[share.lo, share.hi)``.

    ``units``: how many pieces the work can be cut into (over the spec's symbols); ``cycles_per_unit``: an estimate of
    what one costs. With ``partial_bytes`` share number i owns that many bytes at ``share.partials + i * partial_bytes``.
    ``finish`` emits what is done after all shares, by one thread (its ``share.hi`` is the number of shares). ``most``: threads
    at most, where each has memory of its own in an operand.
    """
    name = kernel_name(spec)
    with b.function(f"{name}_body", [PTR, I64, I64, I64, PTR], private=True) as (slots, lo, hi, index, partials):
        share = Share(b, spec, slots, lo, hi, index, partials)
        share.load_slots()
        yield share
    _region(b, name)
    if finish is not None:
        with b.function(f"{name}_finish", [PTR, I64, PTR], private=True) as (slots, count, partials):
            share = Share(b, spec, slots, b.index(0), count, b.index(0), partials)
            share.load_slots()
            finish(share)
    most = MAX_PARTIALS if partial_bytes else most
    _entry(b, spec, name, units, cycles_per_unit, partial_bytes, most, finish is not None)


def _region(b: Builder, name: str) -> None:
    """One thread: data is {slots, units, threads, arrived, partials}. Counts itself, so that the entry knows who came."""
    with b.function(f"{name}_region", [PTR], private=True) as (data,):
        slots = load_slot(b, data, 0, PTR)
        arrived = b.element_pointer(data, b.index(3), I64)
        one = b.index(1)
        b.emit(f"llvm.atomicrmw add {arrived.name}, {one.name} monotonic : {PTR}, i64", I64)
        get = load_slot(b, slots, 1, PTR)
        number = b.emit(f"llvm.call {get.name}() : {PTR}, () -> i32", "i32")
        _run_share(b, name, data, slots, b.cast("arith.extui", number, I64))


def _run_share(b: Builder, name: str, data: Value, slots: Value, index: Value) -> None:
    units, threads = load_slot(b, data, 1, I64), load_slot(b, data, 2, I64)
    lo = b.div(b.mul(units, index), threads)
    hi = b.div(b.mul(units, b.add(index, 1)), threads)
    _call_body(b, name, slots, lo, hi, index, load_slot(b, data, 4, PTR))


def _call_body(b: Builder, name: str, slots: Value, lo: Value, hi: Value, index: Value, partials: Value) -> None:
    args = (slots, lo, hi, index, partials)
    b.line(f"llvm.call @{name}_body({', '.join(a.name for a in args)}) : ({PTR}, i64, i64, i64, {PTR}) -> ()")


def _entry(
    b: Builder,
    spec: KernelSpec,
    name: str,
    units: Expr,
    cycles: Expr,
    partial_bytes: int,
    most: int | None,
    finishes: bool,
) -> None:
    with b.function(name, [PTR]) as (slots,):
        data = b.stack(5, I64)
        partials = b.stack(partial_bytes * MAX_PARTIALS, "i8") if partial_bytes else data
        symbols = load_symbols(b, spec, slots)
        count = scalar_expr(b, units, symbols)
        work = b.mul(count, scalar_expr(b, cycles, symbols))
        useful = b.minimum(b.div(work, CYCLES_PER_THREAD), count)
        allowed = load_slot(b, slots, 3, I64)
        if most is not None:
            allowed = b.minimum(allowed, most)
        threads = b.minimum(useful, allowed)
        parallel = b.compare("arith.cmpi", "sgt", threads, b.index(1))

        def many() -> list[Value]:
            for i, value in enumerate((slots, count, threads, b.index(0), partials)):
                b.store(value, b.element_pointer(data, b.index(i), I64))
            run = load_slot(b, slots, 0, PTR)
            region = b.emit(f"llvm.mlir.addressof @{name}_region : {PTR}", PTR)
            wanted = b.cast("arith.trunci", threads, "i32")
            flags = b.constant(0, "i32")
            b.line(
                f"llvm.call {run.name}({region.name}, {data.name}, {wanted.name}, {flags.name}) "
                f": {PTR}, ({PTR}, {PTR}, i32, i32) -> ()"
            )
            # A thread limit may have given us fewer threads than asked for: their shares are done here.
            with b.loop(load_slot(b, data, 3, I64), threads) as missing:
                _run_share(b, name, data, slots, missing.index)
            return []

        def one() -> list[Value]:
            _call_body(b, name, slots, b.index(0), count, b.index(0), partials)
            return []

        b.choose(parallel, (), many, one)
        if finishes:
            shares = b.maximum(threads, 1)
            b.line(
                f"llvm.call @{name}_finish({slots.name}, {shares.name}, {partials.name}) : ({PTR}, i64, {PTR}) -> ()"
            )
