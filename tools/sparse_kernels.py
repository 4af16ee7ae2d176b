"""Kernels for sparse weights against our own dense one, over the share of zeros: python tools/sparse_kernels.py --threads 1

Each cell is the dense kernel's time over the sparse one's, each the least of some rounds in turn in one process, on random weights of
which random blocks are zero. The last column is the share of zeros from which on the sparse kernel is as fast (interpolated).
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from effc.compiler.codegen.cpu.emit import emit, kernel_name
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.schedules import Packing, packing
from effc.compiler.codegen.cpu.sparse.choice import offered
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import as_expr, const
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand
from effc.runtime import elf
from effc.runtime.derive import derive
from effc.runtime.sparse_panels import stored_blocks
from effc.runtime.threads import threads as thread_pool

SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
#: Input channels, output channels, positions: 1x1 convolutions of MobileNet, V1 and V2; then linear layers of BERT-base, 128 rows.
CONVOLUTIONS = (
    *((32, 64, 12544), (24, 144, 3136), (128, 128, 3136), (256, 256, 784), (96, 576, 196)),
    *((576, 96, 196), (512, 512, 196), (160, 960, 49), (1024, 1024, 49)),
)
LINEARS = ((768, 768, 128), (768, 3072, 128), (3072, 768, 128))
#: Input channels, output channels, outputs a side, stride: 3x3 convolutions of ResNet-50.
WINDOWS = (
    *((64, 64, 56, 1), (128, 128, 28, 1), (256, 256, 14, 1), (512, 512, 7, 1)),
    *((128, 128, 28, 2), (256, 256, 14, 2), (512, 512, 7, 2)),
)
PATTERNS = ("1x1", "4x1", "16x1", "32x1", "1x16")


@dataclass(frozen=True)
class Product:
    """``relu(x @ w.T + b)`` of ``x`` ``[m][k]`` and a result ``[m][n]``, or, in ``planes``, ``[k][m]`` and ``[n][m]``."""

    k: int
    n: int
    m: int
    planes: bool

    @property
    def sum(self) -> int:
        return self.k

    @property
    def inputs(self) -> int:
        return self.m * self.k

    @property
    def outputs(self) -> int:
        return self.m * self.n

    def spec(self) -> KernelSpec:
        k, n, m = self.k, self.n, self.m
        left, out = (f"d0 + {m}*d2", f"d0 + {m}*d1") if self.planes else (f"{k}*d0 + d2", f"{n}*d0 + d1")
        dims = (Dim(const(m)), Dim(const(n)), Dim(const(k), "reduction"))
        return _spec(dims, (m * k, n * k, n, m * n), left, f"{k}*d1 + d2", "d1", out)


@dataclass(frozen=True)
class Convolution:
    """``relu(conv(x, w) + b)``, 3x3, channels last: ``x`` has its border, ``w`` is ``[n][3][3][k]``; ``side`` x ``side`` outputs."""

    k: int
    n: int
    side: int
    stride: int

    @property
    def sum(self) -> int:
        return 9 * self.k

    @property
    def width(self) -> int:
        return self.stride * (self.side - 1) + 3

    @property
    def inputs(self) -> int:
        return self.width**2 * self.k

    @property
    def outputs(self) -> int:
        return self.side**2 * self.n

    def spec(self) -> KernelSpec:
        k, n, side, line = self.k, self.n, self.side, self.width * self.k
        dims = (*(Dim(const(s)) for s in (side, side, n)), *(Dim(const(s), "reduction") for s in (3, 3, k)))
        left = f"{self.stride * line}*d0 + {self.stride * k}*d1 + {line}*d3 + {k}*d4 + d5"
        right, out = f"{9 * k}*d2 + {3 * k}*d3 + {k}*d4 + d5", f"{side * n}*d0 + {n}*d1 + d2"
        return _spec(dims, (self.inputs, n * self.sum, n, self.outputs), left, right, "d2", out)


def _spec(dims: tuple[Dim, ...], sizes: tuple[int, ...], left: str, right: str, column: str, out: str) -> KernelSpec:
    """``relu(left @ right + bias)``; ``sizes``: elements of both, the bias and the result."""
    roles = (*("read",) * 3, "write")
    operands = tuple(Operand("f32", role, const(size)) for role, size in zip(roles, sizes, strict=True))
    body = (
        _load(0, left),
        _load(1, right),
        Instr("contract", (0, 1), "f32"),
        _load(2, column),
        Instr("arith.addf", (2, 3), "f32"),
        Instr("constant", (), "f32", (("value", 0.0),)),
        Instr("arith.maximumf", (4, 5), "f32"),
        Instr("store", (6,), "", (("address", as_expr(out)), ("operand", 3))),
    )
    return KernelSpec("contraction", dims, operands, body)


def _load(operand: int, address: str) -> Instr:
    return Instr("load", (), "f32", (("address", as_expr(address)), ("operand", operand)))


class Runs:
    """A compiled kernel with its tensors; a call runs it. ``held``: keeps them alive.

    ``result``: what it writes; kernels in turn share it, as those of a model share an arena. Of many large ones none would stay in a cache.
    """

    def __init__(
        self, found: Packing, x: torch.Tensor, weight: torch.Tensor, threads: int, result: torch.Tensor | None = None
    ) -> None:
        spec, target = found.spec, Target.host()
        code = elf.load(compile_object(emit(spec, target), target))
        packed = derive(found.function, weight, dict(found.attributes))
        sizes = [o.size.constant or 0 for o in spec.operands]
        written = torch.zeros(sizes[3]) if result is None else result
        tensors = [x, packed, torch.zeros(sizes[2]), written, *(torch.zeros(s) for s in sizes[4:])]
        pool, error = thread_pool(), ctypes.c_int64(0)
        header = (pool.gomp_parallel, pool.thread_num, ctypes.addressof(error), threads)
        slots = [*header, *(t.data_ptr() for t in tensors)]
        self.held = (code, tensors, error)
        self._function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.symbols[kernel_name(spec)])
        self._slots = (ctypes.c_int64 * len(slots))(*slots)

    def __call__(self) -> None:
        self._function(self._slots)


def pruned(n: int, k: int, rows: int, columns: int, zeros: float) -> torch.Tensor:
    """A weight of which just a share ``zeros`` of the blocks is zero."""
    blocks = torch.zeros(-(-n // rows) * -(-k // columns))
    blocks[torch.randperm(len(blocks))[: round(len(blocks) * (1 - zeros))]] = 1
    mask = blocks.view(-(-n // rows), -1).repeat_interleave(rows, 0).repeat_interleave(columns, 1)[:n, :k]
    return torch.randn(n, k) * mask


def compiled(product: Product | Convolution, pattern: tuple[int, int], threads: int) -> Iterator[Runs]:
    """The dense kernel, then the sparse one for each of `SHARES`."""
    spec, target, n = product.spec(), Target.host(), product.n
    x, result, dense = torch.randn(product.inputs), torch.zeros(product.outputs), packing(spec, [1], target)
    assert isinstance(dense, Packing), dense
    yield Runs(dense, x, torch.randn(n, product.sum), threads, result)
    for share in SHARES:
        weight = pruned(n, product.sum, *pattern, share)
        known = Sparsity(*pattern, int(stored_blocks(weight, *pattern).sum()))
        sparse = replace(
            spec, operands=tuple(replace(o, sparsity=known) if i == 1 else o for i, o in enumerate(spec.operands))
        )
        roles = tuple(replace(o, role="packed") if i == 1 else o for i, o in enumerate(sparse.operands))
        packed = replace(sparse, operands=roles)
        found = packing(sparse, [1], target, {packed.key(): offered(packed, target)[0]})
        assert isinstance(found, Packing), found
        yield Runs(found, x, weight, threads, result)


def least(runs: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """Seconds of each, the least of ``rounds`` samples in turn."""
    counts = []
    for run in runs:
        run()
        started = time.perf_counter()
        run()
        counts.append(max(1, int(5e-4 / (time.perf_counter() - started))))
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for i, (run, count) in enumerate(zip(runs, counts, strict=True)):
            started = time.perf_counter()
            for _ in range(count):
                run()
            best[i] = min(best[i], (time.perf_counter() - started) / count)
    return best


def even(ratios: Sequence[float]) -> str:
    """The share of zeros from which on the ratio is 1."""
    if ratios[0] >= 1:
        return f"< {SHARES[0]:.0%}"
    for i in range(1, len(ratios)):
        if ratios[i] >= 1:
            part = (1 - ratios[i - 1]) / (ratios[i] - ratios[i - 1])
            return f"{SHARES[i - 1] + part * (SHARES[i] - SHARES[i - 1]):.0%}"
    return f"> {SHARES[-1]:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument(
        "--patterns", default=",".join(PATTERNS), help="rows x columns of a block, output channels first"
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--planes", action="store_true", help="1x1 convolutions alone, activations channel by channel")
    kinds.add_argument("--windows", action="store_true", help="3x3 convolutions alone; blocks lie along channels")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print("| blocks | layer | dense | " + " | ".join(f"{s:.0%}" for s in SHARES[1:]) + " | even at |")
    print("|---" * (len(SHARES) + 3) + "|")
    for text in arguments.patterns.split(","):
        rows, columns = map(int, text.split("x"))
        for name, product in layers(arguments.windows, arguments.planes):
            runs = list(compiled(product, (rows, columns), arguments.threads))
            dense, *sparse = least(runs, arguments.rounds)
            ratios = [dense / s for s in sparse]
            speed = f"{2e-9 * product.outputs * product.sum / dense:.0f} GFLOP/s"
            cells = " | ".join(f"{r:.2f}" for r in ratios[1:])
            print(f"| {text} | {name} | {speed} | {cells} | {even(ratios)} |", flush=True)


def layers(windows: bool, planes: bool) -> list[tuple[str, Product | Convolution]]:
    """What is asked for, by name."""
    if windows:
        return [(f"conv3x3 {k} to {n}, {s} x {s}, stride {t}", Convolution(k, n, s, t)) for k, n, s, t in WINDOWS]
    found: list[tuple[str, Product | Convolution]]
    found = [(f"conv1x1 {k} to {n}, {m}", Product(k, n, m, planes)) for k, n, m in CONVOLUTIONS]
    return found if planes else found + [(f"linear {k} to {n}, {m}", Product(k, n, m, False)) for k, n, m in LINEARS]


if __name__ == "__main__":
    main()
