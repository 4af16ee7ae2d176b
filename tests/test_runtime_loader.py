"""The ELF loader and the driver's code: every kind of relocation, damaged files, expressions in native code."""

from __future__ import annotations

import ctypes
import random
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from native_programs import at, sum_program, sum_spec

from effc.compiler.codegen.cpu.driver import emit_driver
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import ArtifactError, LoweringError
from effc.compiler.ir.expr import as_expr
from effc.compiler.ir.program import Call
from effc.compiler.ir.slots import Layout
from effc.runtime.elf import load

#: Constants, a table, writable and zeroed data, and calls of libm and of a symbol that the caller gives.
MODULE = """
llvm.func @cos(f64) -> f64
llvm.func @given(i64) -> i64
llvm.mlir.global internal constant @table(dense<[10, 20, 30, 40]> : tensor<4xi64>) : !llvm.array<4 x i64>
llvm.mlir.global internal @counter(7 : i64) : i64
llvm.mlir.global internal @zeroed(0 : i64) : i64
llvm.func @effc_lookup(%i: i64) -> i64 {
  %table = llvm.mlir.addressof @table : !llvm.ptr
  %at = llvm.getelementptr %table[%i] : (!llvm.ptr, i64) -> !llvm.ptr, i64
  %v = llvm.load %at : !llvm.ptr -> i64
  llvm.return %v : i64
}
llvm.func @effc_count(%by: i64) -> i64 {
  %counter = llvm.mlir.addressof @counter : !llvm.ptr
  %zeroed = llvm.mlir.addressof @zeroed : !llvm.ptr
  %old = llvm.load %counter : !llvm.ptr -> i64
  %new = llvm.add %old, %by : i64
  llvm.store %new, %counter : i64, !llvm.ptr
  %z = llvm.load %zeroed : !llvm.ptr -> i64
  %sum = llvm.add %new, %z : i64
  llvm.return %sum : i64
}
llvm.func @effc_cos(%x: f64) -> f64 {
  %scale = llvm.mlir.constant(2.5 : f64) : f64
  %y = llvm.call @cos(%x) : (f64) -> f64
  %z = llvm.fmul %y, %scale : f64
  llvm.return %z : f64
}
llvm.func @effc_given(%x: i64) -> i64 {
  %y = llvm.call @given(%x) : (i64) -> i64
  llvm.return %y : i64
}
"""
INT = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
FLOAT = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)


@pytest.fixture(scope="module")
def code() -> bytes:
    return compile_object(MODULE, Target.host())


def address_of(function: object) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert address is not None
    return address


def test_constants_data_libm_and_given_symbols(code: bytes) -> None:
    triple = INT(lambda x: 3 * x)
    loaded = load(code, {"given": address_of(triple)})
    assert [INT(loaded.symbols["effc_lookup"])(i) for i in range(4)] == [10, 20, 30, 40]
    assert FLOAT(loaded.symbols["effc_cos"])(0.0) == 2.5
    assert INT(loaded.symbols["effc_given"])(14) == 42
    count = INT(loaded.symbols["effc_count"])
    assert [count(1), count(1)] == [8, 9]
    again = load(code, {"given": 1})
    assert INT(again.symbols["effc_count"])(0) == 7, "each load has data of its own"


def test_unresolved_symbol_is_named(code: bytes) -> None:
    with pytest.raises(LoweringError, match="calls 'given', which neither"):
        load(code)


@pytest.mark.parametrize("size", [0, 3, 63, 64, 200])
def test_truncated_object_is_an_error(code: bytes, size: int) -> None:
    with pytest.raises(ArtifactError, match="clear the cache"):
        load(code[:size], {"given": 1})


def test_every_truncation_and_random_damage_is_refused_or_loads(code: bytes) -> None:
    pick = random.Random(7)
    for size in range(0, len(code), 37):
        with pytest.raises((ArtifactError, LoweringError)):
            load(code[:size], {"given": 1})
    for _ in range(500):
        damaged = bytearray(code)
        for _ in range(3):
            damaged[pick.randrange(len(damaged))] = pick.randrange(256)
        try:
            load(bytes(damaged), {"given": 1})
        except (ArtifactError, LoweringError):
            continue


def test_foreign_machine_is_refused(code: bytes) -> None:
    arm = code[:18] + struct.pack("<H", 183) + code[20:]
    with pytest.raises(ArtifactError, match="x86-64"):
        load(arm)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="makes its objects with gcc")
@pytest.mark.parametrize("flags", [["-fPIC"], ["-fPIC", "-fno-plt"], ["-mcmodel=large"], ["-fPIC", "-mcmodel=large"]])
def test_objects_of_other_code_models(tmp_path: Path, flags: list[str]) -> None:
    source = """
    #include <stdint.h>
    extern double cos(double);
    int64_t shared = 5;
    static int64_t zeros[100];
    static const int64_t table[3] = {1, 2, 3};
    int64_t helper(int64_t x) { zeros[x % 100] += 1; return zeros[x % 100] + table[x % 3]; }
    int64_t run(int64_t x) { shared += 1; return helper(x) + shared; }
    double turn(double x) { return cos(x) * 2.5; }
    """
    (tmp_path / "a.c").write_text(source)
    subprocess.run(["gcc", "-O2", "-c", "-fno-builtin", *flags, "a.c", "-o", "a.o"], cwd=tmp_path, check=True)
    loaded = load((tmp_path / "a.o").read_bytes())
    run = INT(loaded.symbols["run"])
    assert [run(4), run(4), run(5)] == [1 + 2 + 6, 2 + 2 + 7, 1 + 3 + 8]
    assert FLOAT(loaded.symbols["turn"])(0.0) == 2.5


@pytest.mark.skipif(shutil.which("gcc") is None, reason="makes its objects with gcc")
def test_absolute_32_bit_addresses_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("static long x[9]; long *get(int i) { x[i] += 1; return x + i; }")
    command = ["gcc", "-O2", "-c", "-fno-pic", "-mcmodel=small", "a.c", "-o", "a.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with pytest.raises(LoweringError, match="compile with the large code model"):
        load((tmp_path / "a.o").read_bytes())


def test_driver_computes_every_expression_as_python_does() -> None:
    texts = [
        "0", "7", "-3", "s0", "s1*s0*4 + 12", "s0 - s1*100", "(s0 - 50) // 7", "(s0 - 50) % 7", "(s1 - 999) // 8 * 8",
        "max(s0, s1) - min(s0*3, s1)", "(s0*s1 + 63) // 64 * 64", "max((s0 - 9) // 2, (s1 + 5) % 3)", "-s0*s1",
    ]  # fmt: skip
    exprs = tuple(as_expr(text) for text in texts)
    spec = replace(sum_spec(1), symbols=tuple(f"s{i}" for i in range(len(texts))))
    call = Call(0, (at("input", 0, "s0 // 3 * 8"), at("output")), exprs)
    program = replace(sum_program(1), symbols=("s0", "s1"), kernels=(spec,), calls=(call,))
    seen: list[list[int]] = []

    def kernel(slots: int) -> None:
        seen.append(list((ctypes.c_int64 * (6 + len(texts))).from_address(slots)))

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel)
    code = compile_object(emit_driver(program), Target.host(), opt_level=0)
    loaded = load(code, {f"k_{spec.digest()}": address_of(callback)})
    layout = Layout.of(program)
    cell = ctypes.c_int64(0)
    for s0, s1 in [(1, 1), (5, 1000), (49, 7), (50, 3), (2**31, 2**20)]:
        slots = (ctypes.c_int64 * layout.count)(11, 12, ctypes.addressof(cell), 2, 99, 1000, 2000, s0, s1)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(loaded.symbols["effc_program"])(ctypes.addressof(slots))
        expected = [e.evaluate({"s0": s0, "s1": s1}) for e in exprs]
        assert seen.pop() == [11, 12, ctypes.addressof(cell), 2, 1000 + s0 // 3 * 8, 2000, *expected]


def test_driver_of_a_program_without_calls_returns() -> None:
    program = replace(sum_program(1), kernels=(), calls=())
    loaded = load(compile_object(emit_driver(program), Target.host(), opt_level=0))
    slots = (ctypes.c_int64 * Layout.of(program).count)()
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(loaded.symbols["effc_program"])(ctypes.addressof(slots))
