"""Measuring a CPU: its peak in multiply-adds, and how fast it reads memory. A tenth of a second, once a machine.

Both kernels do nothing else: one keeps 12 accumulators in registers (8 hide a latency of 4 cycles at 2 a cycle), one reads a buffer
that no cache holds. The best of many short runs is taken, so that other work on the machine is seen as little as possible.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from effc.compiler.build import digest
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError
from effc.compiler.toolchain import toolchain
from effc.costmodel.hardware import Hardware, Speed, describe, flags
from effc.runtime.cache import Cache
from effc.runtime.elf import LoadedObject, load

_ACCUMULATORS = 12
_STEPS = 1 << 17  # some 0.25 ms a run
_LOADS = 8
_BUFFER = 128 << 20  # four times a usual L3: a slice is evicted before its turn comes again
_SLICE = 8 << 20
_RUNS = 40


def host_hardware(cache: Cache) -> Hardware:
    """This machine's description, measured where ``cache`` has no measurement of it."""
    target = Target.host()
    key = digest("hardware 1", target.key, " ".join(flags()), str(os.cpu_count()))
    kept = cache.get("hardware", key)
    if kept is not None:
        try:
            return Hardware.from_json(json.loads(kept))
        except (KeyError, TypeError, ValueError):
            cache.discard("hardware", key)
    found = describe(target.key, target.vector_bytes, lambda: measure(target))
    if found.measured:
        cache.put("hardware", key, json.dumps(found.to_json()).encode())
    return found


def measure(target: Target) -> Speed | None:
    """This machine's speed; None where the toolchain makes no code for it."""
    try:
        text = probe_text(target.vector_bytes)
        code = toolchain().request(
            "object", {"text": text, "target": [target.name, target.vector_bytes, sorted(target.features)]}
        )
    except LoweringError:
        return None
    loaded = load(base64.b64decode(code))
    cores = len(os.sched_getaffinity(0))
    return Speed(_peak(loaded, target.vector_bytes) * cores, _bandwidth(loaded, cores))


def _peak(loaded: LoadedObject, vector_bytes: int) -> float:
    """FLOP/s of one core."""
    run, result = _function(loaded, "effc_peak"), torch.zeros(vector_bytes // 4)
    seconds = _best(lambda: run(result.data_ptr(), _STEPS))
    return 2 * (vector_bytes // 4) * _ACCUMULATORS * _STEPS / seconds


def _bandwidth(loaded: LoadedObject, cores: int) -> float:
    """Bytes a second that all cores read together."""
    run, buffer, results = _function(loaded, "effc_read"), torch.ones(_BUFFER // 4), torch.zeros(cores, 64)
    places = [buffer.data_ptr() + at for at in range(0, _BUFFER - _SLICE * cores + 1, _SLICE * cores)]
    with ThreadPoolExecutor(cores) as threads:

        def read_all() -> None:
            start = places[0]
            places.append(places.pop(0))
            list(threads.map(lambda i: run(start + i * _SLICE, _SLICE, results[i].data_ptr()), range(cores)))

        seconds = _best(read_all)
    return cores * _SLICE / seconds


def _best(run: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_RUNS):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _function(loaded: LoadedObject, name: str) -> Callable[..., object]:
    """A function of integers; calls release the GIL."""
    native = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(loaded.symbols[name])

    def call(*values: int, _keep: LoadedObject = loaded) -> None:
        native(*values, *[0] * (3 - len(values)))

    return call


def probe_text(vector_bytes: int) -> str:
    """MLIR of ``effc_peak(result, steps, 0)`` and ``effc_read(buffer, bytes, result)``."""
    lanes = vector_bytes // 4
    floats, words = f"vector<{lanes}xf32>", f"vector<{lanes}xi32>"
    accumulators = [f"%a{i}" for i in range(_ACCUMULATORS)]
    sums = [f"%s{i}" for i in range(_LOADS)]
    starts = "\n".join(  # all different, or LLVM would keep one of them
        f"    %b{i} = llvm.mlir.constant(dense<{i}.0> : {floats}) : {floats}" for i in range(_ACCUMULATORS)
    )
    fma = "\n".join(f"    %f{i} = llvm.intr.fma(%a{i}, %scale, %one) : ({floats}, {floats}, {floats}) -> {floats}"
                    for i in range(_ACCUMULATORS))  # fmt: skip
    loads = "\n".join(
        f"    %p{i} = llvm.getelementptr %at[{i}] : (!llvm.ptr) -> !llvm.ptr, {words}\n"
        f"    %l{i} = llvm.load %p{i} {{alignment = 4 : i64}} : !llvm.ptr -> {words}\n"
        f"    %x{i} = llvm.xor %s{i}, %l{i} : {words}"
        for i in range(_LOADS)
    )
    return f"""\
module {{
  llvm.func @effc_peak(%result: i64, %steps: i64, %unused: i64) {{
    %to = llvm.inttoptr %result : i64 to !llvm.ptr
    %zero = llvm.mlir.constant(0 : i64) : i64
    %next = llvm.mlir.constant(1 : i64) : i64
    %one = llvm.mlir.constant(dense<1.0> : {floats}) : {floats}
    %scale = llvm.mlir.constant(dense<0.5> : {floats}) : {floats}
{starts}
    llvm.br ^loop(%zero, {", ".join(f"%b{i}" for i in range(_ACCUMULATORS))} : i64, {", ".join([floats] * _ACCUMULATORS)})
  ^loop(%i: i64, {", ".join(f"{a}: {floats}" for a in accumulators)}):
{fma}
    %j = llvm.add %i, %next : i64
    %more = llvm.icmp "slt" %j, %steps : i64
    llvm.cond_br %more, ^loop(%j, {", ".join(f"%f{i}" for i in range(_ACCUMULATORS))} : i64, \
{", ".join([floats] * _ACCUMULATORS)}), ^end
  ^end:
{_reduced("fadd", "f", _ACCUMULATORS, floats)}
    llvm.return
  }}
  llvm.func @effc_read(%buffer: i64, %bytes: i64, %result: i64) {{
    %to = llvm.inttoptr %result : i64 to !llvm.ptr
    %step = llvm.mlir.constant({_LOADS * vector_bytes} : i64) : i64
    %none = llvm.mlir.constant(dense<0> : {words}) : {words}
    %stop = llvm.add %buffer, %bytes : i64
    llvm.br ^loop(%buffer, {", ".join(["%none"] * _LOADS)} : i64, {", ".join([words] * _LOADS)})
  ^loop(%place: i64, {", ".join(f"{s}: {words}" for s in sums)}):
    %at = llvm.inttoptr %place : i64 to !llvm.ptr
{loads}
    %j = llvm.add %place, %step : i64
    %more = llvm.icmp "slt" %j, %stop : i64
    llvm.cond_br %more, ^loop(%j, {", ".join(f"%x{i}" for i in range(_LOADS))} : i64, {", ".join([words] * _LOADS)}), ^end
  ^end:
{_reduced("xor", "x", _LOADS, words)}
    llvm.return
  }}
}}
"""


def _reduced(op: str, name: str, count: int, kind: str) -> str:
    """All values combined and stored, so that none is dead."""
    lines = [f"    %r1 = llvm.{op} %{name}0, %{name}1 : {kind}"]
    lines += [f"    %r{i} = llvm.{op} %r{i - 1}, %{name}{i} : {kind}" for i in range(2, count)]
    return "\n".join([*lines, f"    llvm.store %r{count - 1}, %to {{alignment = 4 : i64}} : {kind}, !llvm.ptr"])
