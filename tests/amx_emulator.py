"""AMX's tile instructions in numpy, so that kernels that use them run on any CPU with AVX-512.

``Emulator.rewrite`` turns each tile instruction of a kernel's MLIR into a call of a Python function at a constant address; all else
stays what runs on a CPU that has them. Semantics, and what faults, are those of Intel's manual (Software Developer's Manual, volume 2:
LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TILERELEASE, TDPBF16PS, TDPBUSD, TDPBSUD), but for two things: a fused multiply-add is
rounded twice (first to float64), and a tile that is read before anything was written into it is a fault too.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

_LINE = re.compile(
    r'^(\s*)llvm\.inline_asm has_side_effects asm_dialect = att "(\w+)([^"]*)", "[^"]*"([^:]*) : \(([^)]*)\) -> \(\)$',
    re.MULTILINE,
)
_SMALLEST = np.float32(2.0**-126)
Dot = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
_I8, _PTR, _I64 = ctypes.c_int8, ctypes.c_void_p, ctypes.c_int64


class Fault(Exception):
    """What the CPU would raise, or what no right kernel does."""


@dataclass
class Tile:
    rows: int
    row_bytes: int
    data: np.ndarray | None = None


@dataclass
class Emulator:
    """The tile registers of all threads. ``faults``: what went wrong; ``counts``: instructions by name; ``loads``: the intervals of
    addresses that were read; ``threads``: those that configured tiles.
    """

    faults: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    loads: list[tuple[int, int]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._files: dict[int, list[Tile]] = {}
        self._functions = {
            "ldtilecfg": self._function(self._configure, _PTR),
            "tileloadd": self._function(self._load, _I8, _PTR, _I64),
            "tilestored": self._function(self._store, _I8, _PTR, _I64),
            "tilezero": self._function(self._zero, _I8),
            "tdpbf16ps": self._product(dot_bf16, np.float32, np.uint16, np.uint16),
            "tdpbusd": self._product(dot_bytes, np.int32, np.uint8, np.int8),
            "tdpbsud": self._product(dot_bytes, np.int32, np.int8, np.uint8),
            "tilerelease": self._function(self._release),
        }

    def rewrite(self, text: str) -> str:
        """The kernel with its tile instructions as calls."""
        number = 0

        def call(match: re.Match[str]) -> str:
            nonlocal number
            space, name, operands, args, types = match.groups()
            if name not in self._functions:
                return match.group()
            number += 1
            at = f"%tile{number}"
            address = ctypes.cast(self._functions[name], ctypes.c_void_p).value  # type: ignore[arg-type]
            tiles = re.findall(r"%tmm(\d)", operands)[::-1]  # AT&T's order is the manual's, reversed
            constants = [f"{at}_{i} = llvm.mlir.constant({tile} : i8) : i8" for i, tile in enumerate(tiles)]
            names = [*(f"{at}_{i}" for i in range(len(tiles))), *filter(None, args.strip().split(", "))]
            kinds = [*("i8" for _ in tiles), *filter(None, types.split(", "))]
            lines = [
                f"{at}_at = llvm.mlir.constant({address} : i64) : i64",
                *constants,
                f"{at} = llvm.inttoptr {at}_at : i64 to !llvm.ptr",
                f"llvm.call {at}({', '.join(names)}) : !llvm.ptr, ({', '.join(kinds)}) -> ()",
            ]
            return "\n".join(space + line for line in lines)

        return _LINE.sub(call, text)

    def reset(self) -> None:
        """Forget what was recorded."""
        for record in (self.faults, self.counts, self.loads, self.threads):
            record.clear()

    def check(self) -> None:
        """No fault so far, and every thread has released its tiles."""
        assert not self.faults, self.faults[:3]
        assert not self._files, "tiles are still configured"

    # -- instructions -------------------------------------------------------------------------------------------------
    def _function(self, run: Callable[..., None], *types: type) -> Callable[..., None]:
        def wrapped(*args: int) -> None:
            try:
                self.counts[run.__name__] += 1
                run(*args)
            except Fault as fault:
                self.faults.append(f"{run.__name__}{args}: {fault}")
            except Exception as error:  # ctypes would only print it
                self.faults.append(f"{run.__name__}{args}: {error!r}")

        return ctypes.CFUNCTYPE(None, *types)(wrapped)

    def _product(self, dot: Dot, total: type, left: type, right: type) -> Callable[..., None]:
        """A product of tiles whose elements have these types."""

        def multiply(*tiles: int) -> None:
            self._multiply(lambda c, a, b: dot(c.view(total), a.view(left), b.view(right)), *tiles)

        return self._function(multiply, _I8, _I8, _I8)

    def _configure(self, pointer: int) -> None:
        data = np.frombuffer(ctypes.string_at(pointer, 64), np.uint8)
        sizes, rows = data[16:48].view(np.uint16), data[48:64]
        if data[0] != 1 or data[1:16].any():
            raise Fault("the palette is 1, and all to byte 16 zero")
        if sizes[8:].any() or rows[8:].any() or (sizes > 64).any() or (rows > 16).any():
            raise Fault("there are 8 tiles of at most 16 rows of 64 bytes")
        if ((sizes == 0) != (rows == 0)).any():
            raise Fault("a tile with rows of no bytes, or without rows")
        self.threads.add(threading.get_ident())
        self._files[threading.get_ident()] = [Tile(int(r), int(s)) for r, s in zip(rows[:8], sizes[:8], strict=True)]

    def _release(self) -> None:
        if self._files.pop(threading.get_ident(), None) is None:
            raise Fault("this thread has configured no tiles")

    def _tile(self, number: int) -> Tile:
        file = self._files.get(threading.get_ident())
        if file is None or not 0 <= number < len(file) or not file[number].rows:
            raise Fault(f"this thread has not configured tile {number}")
        return file[number]

    def _written(self, number: int) -> tuple[Tile, np.ndarray]:
        tile = self._tile(number)
        if tile.data is None:
            raise Fault(f"tile {number} is read before it is written")
        return tile, tile.data

    def _zero(self, number: int) -> None:
        tile = self._tile(number)
        tile.data = np.zeros((tile.rows, tile.row_bytes), np.uint8)

    def _load(self, number: int, pointer: int, stride: int) -> None:
        tile = self._tile(number)
        starts = [pointer + i * stride for i in range(tile.rows)]
        self.loads += [(start, start + tile.row_bytes) for start in starts]
        data = b"".join(ctypes.string_at(start, tile.row_bytes) for start in starts)
        tile.data = np.frombuffer(data, np.uint8).reshape(tile.rows, tile.row_bytes)

    def _store(self, number: int, pointer: int, stride: int) -> None:
        tile, data = self._written(number)
        for i in range(tile.rows):
            ctypes.memmove(pointer + i * stride, data[i].tobytes(), tile.row_bytes)

    def _multiply(self, dot: Dot, total: int, left: int, right: int) -> None:
        (c, sums), (a, x), (b, y) = (self._written(number) for number in (total, left, right))
        if len({total, left, right}) < 3:
            raise Fault("the three tiles are not different")
        if a.rows != c.rows or b.row_bytes != c.row_bytes or a.row_bytes != 4 * b.rows:
            raise Fault(f"{c.rows} x {c.row_bytes} from {a.rows} x {a.row_bytes} and {b.rows} x {b.row_bytes}")
        with np.errstate(all="ignore"):
            c.data = dot(sums, x, y).view(np.uint8)


def dot_bytes(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``total[m, n]`` (int32) plus the products of ``left[m, 4k]`` and ``right[k, 4n]``, wrapped."""
    k, n = len(right), right.shape[1] // 4
    factor = right.reshape(k, n, 4).transpose(0, 2, 1).reshape(4 * k, n)
    return (total + left.astype(np.int64) @ factor.astype(np.int64)).astype(np.int32)


def dot_bf16(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``total[m, n]`` (float32) plus the products of ``left[m, 2k]`` and ``right[k, 2n]`` (bits of bf16): even and odd elements are summed
    apart, by fused multiply-adds, then added.
    """
    pairs = [_widened(t).reshape(len(t), -1, 2).astype(np.float64) for t in (left, right)]
    sums = np.zeros((*total.shape, 2), np.float32)
    for k in range(len(right)):
        sums = _flushed((sums.astype(np.float64) + pairs[0][:, k, None] * pairs[1][k][None]).astype(np.float32))
    return _flushed(_flushed(total) + _flushed(sums[..., 0] + sums[..., 1]))


def _widened(bits: np.ndarray) -> np.ndarray:
    return _flushed((bits.astype(np.uint32) << 16).view(np.float32))


def _flushed(values: np.ndarray) -> np.ndarray:
    """Zeros of their sign for subnormals."""
    return np.where(np.abs(values) < _SMALLEST, np.copysign(np.float32(0), values), values)
