"""From MLIR text to an object, and the threads of a kernel: errors, silence, and shares that nobody took."""

from __future__ import annotations

import ctypes

import pytest
import torch
from kernels import HOST, Kernel, LoopsBuilder

from effc.compiler.codegen.cpu.emit import emit, kernel_name
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec
from effc.runtime import elf


def test_text_that_does_not_parse_is_an_error_with_mlirs_words() -> None:
    with pytest.raises(LoweringError, match="custom op 'nonsense'"):
        compile_object("module { llvm.func @k() { nonsense llvm.return } }", HOST)


def test_a_module_without_a_public_function_is_refused() -> None:
    with pytest.raises(LoweringError, match="no public function"):
        compile_object("module { llvm.func internal @helper() { llvm.return } }", HOST)


def test_symbols_of_the_loader_stay_undefined_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    text = """module {
      func.func private @from_the_loader(f64) -> f64
      llvm.func @k_0(%p: !llvm.ptr) {
        %x = llvm.load %p : !llvm.ptr -> f64
        %y = func.call @from_the_loader(%x) : (f64) -> f64
        llvm.store %y, %p : f64, !llvm.ptr
        llvm.return
      }
    }"""
    data = compile_object(text, HOST)
    assert capfd.readouterr().err == ""
    double = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(lambda x: 2 * x)
    loaded = elf.load(data, {"from_the_loader": ctypes.cast(double, ctypes.c_void_p).value or 0})
    cell = ctypes.c_double(21.0)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(loaded.symbols["k_0"])(ctypes.addressof(cell))
    assert cell.value == 42.0


def test_unknown_names_are_listed_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown CPU target 'arm'.*avx2"):
        Target.named("arm")
    with pytest.raises(LoweringError, match=r"no emitter for template 'magic'.*loops"):
        emit(KernelSpec("magic", (), (), ()), HOST)


def test_equal_specs_give_equal_text() -> None:
    def text() -> str:
        k = LoopsBuilder([("s0", "parallel")], [("f32", "read", "s0"), ("f32", "write", "s0")])
        k.store(1, "d0", k.op("math.exp", k.load(0, "d0")))
        return emit(k.spec(["s0"]), HOST)

    assert text() == text()


def _negation(n: int) -> KernelSpec:
    k = LoopsBuilder([(n, "parallel")], [("f32", "read", n), ("f32", "write", n)])
    k.store(1, "d0", k.op("arith.negf", k.load(0, "d0")))
    return k.spec()


def test_one_thread_never_calls_the_pool() -> None:
    n = 1_000_000
    spec = _negation(n)
    loaded = elf.load(compile_object(emit(spec, HOST), HOST))
    x, out = torch.randn(n), torch.full((n,), float("nan"))
    slots = (ctypes.c_int64 * 6)(0, 0, 0, 1, x.data_ptr(), out.data_ptr())  # addresses 0: a call would crash
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(loaded.symbols[kernel_name(spec)])(ctypes.addressof(slots))
    assert torch.equal(out, -x)


@pytest.mark.parametrize("granted", [1, 2, 4])
def test_fewer_threads_than_asked_for_still_do_all_the_work(granted: int) -> None:
    n = 1_000_000
    spec = _negation(n)
    loaded = elf.load(compile_object(emit(spec, HOST), HOST))
    region_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    current, asked = [0], [0]

    def parallel(function: int, data: int, threads: int, _flags: int) -> None:
        asked[0] = threads
        for current[0] in range(min(threads, granted)):
            region_type(function)(data)

    pool = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)(parallel)
    number = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: current[0])
    addresses = [ctypes.cast(f, ctypes.c_void_p).value or 0 for f in (pool, number)]
    x, out = torch.randn(n), torch.full((n,), float("nan"))
    slots = (ctypes.c_int64 * 6)(*addresses, 0, 4, x.data_ptr(), out.data_ptr())
    region_type(loaded.symbols[kernel_name(spec)])(ctypes.addressof(slots))
    assert asked[0] == 4
    assert torch.equal(out, -x)


def test_small_work_stays_on_one_thread() -> None:
    spec = _negation(100)
    x, out = torch.randn(100), torch.full((100,), float("nan"))
    loaded = elf.load(compile_object(emit(spec, HOST), HOST))
    slots = (ctypes.c_int64 * 6)(0, 0, 0, 8, x.data_ptr(), out.data_ptr())  # address 0: a region would crash
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(loaded.symbols[kernel_name(spec)])(ctypes.addressof(slots))
    assert torch.equal(out, -x)


def test_a_kernel_may_be_called_many_times() -> None:
    kernel = Kernel(_negation(100_000))
    x, out = torch.randn(100_000), torch.empty(100_000)
    for _ in range(200):
        out.fill_(float("nan"))
        kernel([x, out], threads=2)
        assert torch.equal(out, -x)
