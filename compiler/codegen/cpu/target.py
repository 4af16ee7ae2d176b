"""What a kernel is compiled for: the vector width and the instruction sets it may use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from effc.compiler.codegen.cpu.permission import usable
from effc.compiler.ir.errors import OptionError

#: The environment variable that names a lesser target to compile for: to see and to measure what such a CPU would run.
CHOICE = "EFFC_CPU"

#: Features by the name that /proc/cpuinfo gives them → LLVM's name, where the two differ.
_LLVM_NAMES = {"avx512_bf16": "avx512bf16", "avx512_vnni": "avx512vnni", "avx512_fp16": "avx512fp16", "pni": "sse3",
               "sse4_1": "sse4.1", "sse4_2": "sse4.2", "abm": "lzcnt",
               "amx_tile": "amx-tile", "amx_bf16": "amx-bf16", "amx_int8": "amx-int8"}  # fmt: skip

#: What effc asks of a CPU; anything else in /proc/cpuinfo does not change the code we choose.
_CONSIDERED = (
    "ssse3", "sse4_1", "sse4_2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "avx512f", "avx512bw", "avx512dq",
    "avx512vl", "avx512cd", "avx512_bf16", "avx512_vnni", "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8",
)  # fmt: skip

#: A host whose AVX-512 lacks one of these is treated as an AVX2 host: byte and word masks need BW, 64-bit conversions
#: DQ.
_AVX512_BASE = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})

_AVX2 = frozenset({"ssse3", "sse4_1", "sse4_2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2"})

#: LLVM features to take away, by the vector width that remains; the JIT starts from all that the host has.
_REMOVED = {
    64: (),
    32: ("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512cd", "avx512bf16", "avx512vnni", "avx512fp16",
    "avx512vbmi", "avx512vbmi2", "avx512ifma", "avx512bitalg", "avx512vpopcntdq", "avx512vp2intersect", "evex512",
    "avx10.1-512"), 16: ("ssse3", "sse4.1", "sse4.2", "avx", "avx2", "fma", "f16c", "avxvnni", "xop", "fma4", "sse4a",
    "vaes", "vpclmulqdq", "gfni", "sha512"), }  # fmt: skip


@dataclass(frozen=True)
class Target:
    """``vector_bytes``: 64, 32 or 16. ``features``: names as in /proc/cpuinfo (``avx512f``, ``avx512_bf16``, ``fma``,
    …).
    """

    name: str
    vector_bytes: int
    features: frozenset[str]

    @staticmethod
    @lru_cache(maxsize=1)
    def host() -> Target:
        """What this process compiles for: the CPU that it runs on, or the lesser one that ``EFFC_CPU`` names.

        x86-64's baseline where /proc/cpuinfo cannot be read. OptionError: the variable asks for what is not known, or not there.
        """
        chosen = os.environ.get(CHOICE)
        if not chosen:
            return Target._of_this_cpu()
        try:
            target = Target.named(chosen) if chosen != "host" else Target._of_this_cpu()
        except ValueError as error:
            raise OptionError(f"{CHOICE}: {error}") from error
        missing = sorted(target.features - Target._of_this_cpu().features)
        if missing:
            raise OptionError(f"{CHOICE}={chosen}: this CPU has no {', '.join(missing)}")
        return target

    @staticmethod
    def _of_this_cpu() -> Target:
        """What this process may use of it."""
        try:
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        except OSError:
            return Target.named("x86-64")
        flags = next(
            (set(line.split(":", 1)[1].split()) for line in text.splitlines() if line.startswith("flags")), set()
        )
        return _from_flags(usable(flags & set(_CONSIDERED)))

    @staticmethod
    def named(name: str) -> Target:
        """``"host"``, ``"avx512"`` (the common base), ``"avx2"`` or ``"x86-64"``; ValueError for another name."""
        if name == "host":
            return Target.host()
        if name == "avx512":
            return Target(name, 64, _AVX2 | _AVX512_BASE)
        if name == "avx2":
            return Target(name, 32, _AVX2)
        if name == "x86-64":
            return Target(name, 16, frozenset())
        raise ValueError(f"unknown CPU target {name!r}: known are host, avx512, avx2, x86-64")

    def has(self, feature: str) -> bool:
        return feature in self.features

    @property
    def sums_pairs(self) -> bool:
        """Whether ``vdpbf16ps`` is the fast way to sum products of bf16 by vectors. Intel's cores that have tile registers run it at a
        quarter of the rate of multiply-adds (123 against 246 GFLOP/s on one of Sapphire Rapids' successors), AMD's at the full one.
        """
        return self.has("avx512_bf16") and not self.has("amx_bf16")

    @property
    def near_level(self) -> int:
        """Level of the cache into which rows that are read out of order are fetched ahead. Half of 1,536 rows of 576 columns from
        memory, by one core: on Zen 4, whose L1 waits for few lines at a time, 0.95 of the dense kernel's speed by L2 and 0.71 by L1;
        on Emerald Rapids 1.5 to 1.6 by L1.
        """
        return 1 if self.has("amx_bf16") else 2

    @property
    def halves_vectors(self) -> bool:
        """Whether a multiply-add of 512 bits takes two cycles, as far as the features tell: so on AMD's Zen 4; Zen 5 and Intel's
        Cooper Lake, where it takes one, have all of those that are asked for here.
        """
        return self.vector_bytes == 64 and self.sums_pairs

    @property
    def pairs_halves(self) -> bool:
        """Whether two multiply-adds of 256 bits take no longer than one of 512: on Zen 4, but not on Zen 5, which has AVX-VNNI
        beside. Cooper Lake has not, and is taken for Zen 4: there two of 256 bits take twice as long.
        """
        return self.halves_vectors and not self.has("avx_vnni")

    @property
    def fetches_streams(self) -> bool:
        """Whether to fetch ahead what is read in order: on Zen 4 that keeps the processor's own prefetching from it. 2:4 weights from
        memory, one row, one core: 1.24 to 1.33 times the dense kernel's speed with it, 1.62 to 1.94 without.
        """
        return not self.halves_vectors

    @property
    def gaps(self) -> float:
        """How many times as long a row of float32 in memory takes where others before it are left out as where none is. Two cores of
        Zen 4 read 25 GB/s by lines that instructions ask for, and 35 or 63, as the memory's speed moves, by the processor's own streams,
        which gaps end: 1.4 or 2.5 (docs/activation_sparsity.md). On Emerald Rapids both are alike.
        """
        return 1.8 if self.halves_vectors else 1.0

    @property
    def restarts(self) -> float:
        """The same of rows that are read one by one from end to end, as sums of single columns are made: streams begin anew in each. On
        Zen 4 as much of 30 % of 1,536 rows left out as of none: nothing is gained below 40 %, in bfloat16 on another day below 50 %
        (docs/activation_sparsity.md).
        """
        return 1.65 if self.halves_vectors else 1.0

    def lanes(self, element_bytes: int) -> int:
        """Elements of ``element_bytes`` that one vector register holds."""
        return self.vector_bytes // element_bytes

    @property
    def removed_features(self) -> tuple[str, ...]:
        """LLVM features to switch off on every function, as ``-name``."""
        gone: list[str] = [*_REMOVED[64]]
        if self.vector_bytes <= 32:
            gone += _REMOVED[32]
        if self.vector_bytes <= 16:
            gone += _REMOVED[16]
        else:
            gone += [
                _LLVM_NAMES.get(f, f) for f in ("avx512_bf16", "avx512_vnni", "avx512_fp16") if f not in self.features
            ]
        return tuple(f"-{f}" for f in dict.fromkeys(gone))

    @property
    def added_features(self) -> tuple[str, ...]:
        """LLVM features to switch on, as ``+name``, so that code for tile registers can be made on a CPU without them."""
        return tuple(f"+{_LLVM_NAMES.get(f, f)}" for f in sorted(self.features) if f.startswith("amx"))

    @property
    def unused(self) -> frozenset[str]:
        """Features, by /proc/cpuinfo's names, that code for it does without, though a CPU that it runs on may have them."""
        return frozenset(_CONSIDERED) - self.features

    @property
    def plain(self) -> list[Any]:
        """As JSON holds it, for requests to the toolchain; `of_plain` reads it."""
        return [self.name, self.vector_bytes, sorted(self.features)]

    @staticmethod
    def of_plain(plain: Sequence[Any]) -> Target:
        name, vector_bytes, features = plain
        return Target(name, vector_bytes, frozenset(features))

    @property
    def key(self) -> str:
        """Text that equal targets share, for cache keys."""
        return f"{self.name}/{self.vector_bytes}/{','.join(sorted(self.features))}"


def _from_flags(flags: frozenset[str]) -> Target:
    if flags >= _AVX512_BASE:
        return Target("host", 64, flags)
    if {"avx2", "fma", "f16c"} <= flags:
        return Target("host", 32, frozenset(f for f in flags if not f.startswith(("avx512", "amx"))))
    return Target("host", 16, frozenset())
