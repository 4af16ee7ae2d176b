"""Measuring a CPU: its peak in multiply-adds, and how fast it reads memory and its caches. Some tenths of a second, once a machine.

Both kernels do nothing else: one keeps 12 accumulators in registers (8 hide a latency of 4 cycles at 2 a cycle), one reads a buffer
that no cache holds, or one that a certain cache does, many times. The best of many short runs is taken, so that other work on the
machine is seen as little as possible.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from effc.compiler.build import digest, machine_code
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError
from effc.compiler.toolchain import toolchain
from effc.costmodel.hardware import Hardware, Speed, Speeds, cache_bytes, describe, flags
from effc.runtime.cache import Cache
from effc.runtime.elf import LoadedObject, load

_ACCUMULATORS = 12
_STEPS = 1 << 17  # some 0.25 ms a run
_LOADS = 8
_BUFFER = 128 << 20  # four times a usual L3: what was read is evicted before its turn comes again
_GRAIN = 4096  # bytes: a multiple of what one step of the reading loop takes
_RUNS = 40
#: Bytes that a thread reads from a cache in one run, so that starting threads does not count; sizes of caches where the system does not
#: tell them.
_FROM_CACHE = 64 << 20
_USUAL = (32 << 10, 1 << 20, 32 << 20)


def host_hardware(cache: Cache) -> Hardware:
    """This machine's description, measured where ``cache`` has no measurement of it. Instruction sets that code may not use, because
    ``EFFC_CPU`` names a lesser CPU or the system forbids them, are not in it.
    """
    target = Target.host()
    found = _measured(cache, target)
    return replace(found, isa=tuple(flag for flag in found.isa if flag not in target.unused))


def _measured(cache: Cache, target: Target) -> Hardware:
    key = digest("hardware 2", target.key, " ".join(flags()), str(os.cpu_count()))
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


def measure(target: Target) -> Speeds | None:
    """This machine's speeds; None where the toolchain makes no code for it."""
    try:
        probe = Probe(target)
    except LoweringError:
        return None
    return Speeds(probe.speed(len(os.sched_getaffinity(0))), probe.speed(1), probe.caches())


class Probe:
    """The two kernels, compiled and loaded; LoweringError where the toolchain makes no code for ``target``."""

    def __init__(self, target: Target) -> None:
        loaded = load(machine_code(probe_text(target.vector_bytes), target, toolchain()))
        self._lanes = target.vector_bytes // 4
        self._multiply, self._read = _function(loaded, "effc_peak"), _function(loaded, "effc_read")
        self._buffer = torch.ones(_BUFFER // 4)

    def speed(self, threads: int, runs: int = _RUNS) -> Speed:
        """Of that many threads together, the best of ``runs`` runs of each kernel."""
        results = torch.zeros(threads, 64)
        with ThreadPoolExecutor(threads) as pool:
            each = pool.map(lambda i: self._peak(results[i].data_ptr(), runs), range(threads))
            return Speed(sum(each), self._bandwidth(pool, results, runs))

    def caches(self, runs: int = _RUNS) -> tuple[float, float, float]:
        """Bytes a second that one thread reads from L1, L2 and L3: of a buffer of half the cache, or of four times the one before it, whose
        part of a shared L3 is surely ours.
        """
        l1, l2, l3 = (cache_bytes(level) or usual for level, usual in zip((1, 2, 3), _USUAL, strict=True))
        return (
            self.reading(1, l1 // 2, runs),
            self.reading(1, l2 // 2, runs),
            self.reading(1, min(l3 // 2, 4 * l2), runs),
        )

    def reading(self, threads: int, part: int, runs: int = _RUNS) -> float:
        """Bytes a second that so many threads read together, each the same ``part`` bytes (down to a multiple of `_GRAIN`) over and over,
        the best of ``runs`` runs.
        """
        part = max(part // _GRAIN, 1) * _GRAIN
        passes, results, start = max(_FROM_CACHE // part, 2), torch.zeros(threads, 64), self._buffer.data_ptr()

        def read(thread: int) -> None:
            self._read(start + thread * part, part, results[thread].data_ptr(), passes)

        if threads == 1:
            return part * passes / _best(lambda: read(0), runs)
        with ThreadPoolExecutor(threads) as pool:
            return threads * part * passes / _best(lambda: list(pool.map(read, range(threads))), runs)

    def _peak(self, result: int, runs: int) -> float:
        """FLOP/s of this thread."""
        seconds = _best(lambda: self._multiply(result, _STEPS), runs)
        return 2 * self._lanes * _ACCUMULATORS * _STEPS / seconds

    def _bandwidth(self, pool: ThreadPoolExecutor, results: Tensor, runs: int) -> float:
        """Bytes a second; each thread reads its part of the buffer."""
        threads, start = len(results), self._buffer.data_ptr()
        part = _BUFFER // threads // _GRAIN * _GRAIN

        def read_all() -> None:
            list(pool.map(lambda i: self._read(start + i * part, part, results[i].data_ptr(), 1), range(threads)))

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
    native = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(loaded.symbols[name])

    def call(*values: int, _keep: LoadedObject = loaded) -> None:
        native(*values, *[0] * (4 - len(values)))

    return call


def probe_text(vector_bytes: int) -> str:
    """MLIR of ``effc_peak(result, steps, 0, 0)`` and ``effc_read(buffer, bytes, result, passes)``."""
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
        f"    %g{i} = llvm.getelementptr %at[{i}] : (!llvm.ptr) -> !llvm.ptr, {words}\n"
        f"    %l{i} = llvm.load %g{i} {{alignment = 4 : i64}} : !llvm.ptr -> {words}\n"
        f"    %x{i} = llvm.xor %s{i}, %l{i} : {words}"
        for i in range(_LOADS)
    )
    return f"""\
module {{
  llvm.func @effc_peak(%result: i64, %steps: i64, %unused: i64, %none: i64) {{
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
  llvm.func @effc_read(%buffer: i64, %bytes: i64, %result: i64, %passes: i64) {{
    %to = llvm.inttoptr %result : i64 to !llvm.ptr
    %step = llvm.mlir.constant({_LOADS * vector_bytes} : i64) : i64
    %none = llvm.mlir.constant(dense<0> : {words}) : {words}
    %stop = llvm.add %buffer, %bytes : i64
    %zero = llvm.mlir.constant(0 : i64) : i64
    %one = llvm.mlir.constant(1 : i64) : i64
    llvm.br ^pass(%zero, {", ".join(["%none"] * _LOADS)} : i64, {", ".join([words] * _LOADS)})
  ^pass(%p: i64, {", ".join(f"%t{i}: {words}" for i in range(_LOADS))}):
    llvm.br ^loop(%buffer, {", ".join(f"%t{i}" for i in range(_LOADS))} : i64, {", ".join([words] * _LOADS)})
  ^loop(%place: i64, {", ".join(f"{s}: {words}" for s in sums)}):
    %at = llvm.inttoptr %place : i64 to !llvm.ptr
{loads}
    %j = llvm.add %place, %step : i64
    %more = llvm.icmp "slt" %j, %stop : i64
    llvm.cond_br %more, ^loop(%j, {", ".join(f"%x{i}" for i in range(_LOADS))} : i64, {", ".join([words] * _LOADS)}), ^passed
  ^passed:
    %q = llvm.add %p, %one : i64
    %again = llvm.icmp "slt" %q, %passes : i64
    llvm.cond_br %again, ^pass(%q, {", ".join(f"%x{i}" for i in range(_LOADS))} : i64, {", ".join([words] * _LOADS)}), ^end
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
