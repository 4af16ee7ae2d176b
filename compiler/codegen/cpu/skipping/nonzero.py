"""Lists of what is not left out: indices, compressed from vectors of conditions, on the stack."""

from __future__ import annotations

from effc.compiler.codegen.cpu.text import Builder, Value

#: Entries behind the last one that repeat it: what is fetched ahead.
SLACK = 16


class IndexList:
    """Room for ``entries`` indices of four bytes, and `SLACK`; made at the top of a function."""

    def __init__(self, b: Builder, entries: int, lanes: int) -> None:
        self.b, self.lanes = b, lanes
        self.base = b.stack(entries + SLACK, "i32")

    def append(self, count: Value, first: Value, keep: Value) -> Value:
        """Add ``first`` plus the number of each lane that ``keep`` says, behind ``count`` entries; how many there are then."""
        b, lanes = self.b, self.lanes
        start = b.broadcast(b.cast("arith.trunci", first, "i32"), lanes)
        indices = b.op("arith.addi", start, b.iota(lanes, "i32"))
        packed = b.emit(
            f'llvm.call_intrinsic "llvm.experimental.vector.compress.v{lanes}i32"({indices.name}, {keep.name}, {indices.name}) '
            f": ({indices.type}, {keep.type}, {indices.type}) -> {indices.type}",
            indices.type,
        )
        b.store(packed, b.element_pointer(self.base, count, "i32"))
        bits = b.emit(f"vector.bitcast {keep.name} : {keep.type} to vector<1xi{lanes}>", f"vector<1xi{lanes}>")
        ones = b.emit(f"math.ctpop {b.extract(bits, 0).name} : i{lanes}", f"i{lanes}")
        return b.add(count, b.cast("arith.extui", ones, "i64"))

    def close(self, count: Value) -> None:
        """Repeat the last of ``count`` entries."""
        b = self.b
        last = b.load(b.element_pointer(self.base, b.maximum(b.sub(count, 1), 0), "i32"), "i32")
        b.store(b.broadcast(last, SLACK), b.element_pointer(self.base, count, "i32"))

    def entry(self, number: Value) -> Value:
        """As i64."""
        b = self.b
        return b.cast("arith.extui", b.load(b.element_pointer(self.base, number, "i32"), "i32"), "i64")
