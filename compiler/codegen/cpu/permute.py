"""A permutation of a vector of floats by indices that are known only at run time."""

from __future__ import annotations

from effc.compiler.codegen.cpu.text import Builder, Value, split_type

_INTRINSICS = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}


def permuted(b: Builder, table: Value, index: Value) -> Value:
    """Lane i is that of ``table`` (16 or 8 floats) which the lowest 4 or 3 bits of lane i of ``index`` (i32) name; others are ignored."""
    name = _INTRINSICS[split_type(table.type)[0]]
    return b.emit(
        f'llvm.call_intrinsic "{name}"({table.name}, {index.name}) : ({table.type}, {index.type}) -> {table.type}',
        table.type,
    )
