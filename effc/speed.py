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
from torch import Tensor

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
_BUFFER = 128 << 20  # four times a usual L3: what was read is evicted before its turn comes again
_GRAIN = 4096  # bytes: a multiple of what one step of the reading loop takes
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
        probe = Probe(target)
    except LoweringError:
        return None
    return probe.speed(len(os.sched_getaffinity(0)))


class Probe:
    """The two kernels, compiled and loaded; LoweringError where the toolchain makes no code for ``target``."""

    def __init__(self, target: Target) -> None:
        code = toolchain().request(
            "object",
            {
                "text": probe_text(target.vector_bytes),
                "target": [target.name, target.vector_bytes, sorted(target.features)],
            },
        )
        loaded = load(base64.b64decode(code))
        self._lanes = target.vector_bytes // 4
        self._multiply, self._read = _function(loaded, "effc_peak"), _function(loaded, "effc_read")
        self._buffer = torch.ones(_BUFFER // 4)

    def speed(self, threads: int, runs: int = _RUNS) -> Speed:
        """Of that many threads together, the best of ``runs`` runs of each kernel."""
        results = torch.zeros(threads, 64)
        with ThreadPoolExecutor(threads) as pool:
            each = pool.map(lambda i: self._peak(results[i].data_ptr(), runs), range(threads))
            return Speed(sum(each), self._bandwidth(pool, results, runs))

    def reading(self, threads: int, part: int, runs: int = _RUNS) -> float:
        """Bytes a second that so many threads read together, each the same ``part`` bytes (a multiple of 4 KiB) over and over, the best of
        ``runs`` runs; what the calls cost is taken off.
        """
        results, start = torch.zeros(threads, 64), self._buffer.data_ptr()
        repeats = max(1, _BUFFER // (8 * threads * part))

        def read(thread: int, size: int) -> None:
            for _ in range(repeats):
                self._read(start + thread * part, size, results[thread].data_ptr())

        def seconds(size: int) -> float:
            return _best(lambda: list(pool.map(read, range(threads), [size] * threads)), runs)

        with ThreadPoolExecutor(threads) as pool:
            full, empty = seconds(part), seconds(0)
        return threads * repeats * part / (full - min(empty, full / 2))

    def _peak(self, result: int, runs: int) -> float:
        """FLOP/s of this thread."""
        seconds = _best(lambda: self._multiply(result, _STEPS), runs)
        return 2 * self._lanes * _ACCUMULATORS * _STEPS / seconds

    def _bandwidth(self, pool: ThreadPoolExecutor, results: Tensor, runs: int) -> float:
        """Bytes a second; each thread reads its part of the buffer."""
        threads, start = len(results), self._buffer.data_ptr()
        part = _BUFFER // threads // _GRAIN * _GRAIN

        def read_all() -> None:
            list(pool.map(lambda i: self._read(start + i * part, part, results[i].data_ptr()), range(threads)))

        return threads * part / _best(read_all, runs)


def _best(run: Callable[[], object], runs: int) -> float:
    best = float("inf")
    for _ in range(runs):
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
    starts = "\n".join(  # all different, and none 2, which x / 2 + 1 maps to itself: or LLVM would keep fewer of them
        f"    %b{i} = llvm.mlir.constant(dense<{i}.5> : {floats}) : {floats}" for i in range(_ACCUMULATORS)
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
