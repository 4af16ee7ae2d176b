"""Few rows times N:M weights, against our own dense kernel: python tools/sparse_gemv.py --threads 1

Each cell is the dense kernel's time over the sparse one's, each the least of some rounds in turn in one process, on random weights. As
many copies of each weight as fill 96 MiB pass in turn, as the layers of a model do; with ``--near`` it is one, which may stay in a cache.
The last line is what the bytes alone would give: those of the dense weight over those of values and positions.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import torch
from sparse_kernels import Product, Runs, least

from effc.compiler.codegen.cpu.schedules import Packing, packing
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.pattern import Pattern
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.pages import Pages

#: Inputs and outputs of layers: of SmolLM2-135M, of BERT-base, and of larger models.
LAYERS = ((576, 1536), (1536, 576), (768, 3072), (2048, 2048), (4096, 4096))
ROWS = (1, 2, 4, 8)
PATTERNS = ("2:4", "1:4", "4:8", "2:8", "4:16")
#: Bytes of the dense copies.
FAR = 96 << 20


class Layers(Runs):
    """A kernel with ``copies`` of its packed weight, one a call. ``is_sparse``: it leaves out zeros."""

    def __init__(self, found: Packing, x: torch.Tensor, weight: torch.Tensor, threads: int, copies: int) -> None:
        super().__init__(found, x, weight, threads)
        self.is_sparse = bool(found.spec.schedule.get("sparse"))
        pages, packed = Pages(), self.held[1][1]
        self._copies = [packed, *(pages.copy(packed) for _ in range(copies - 1))]
        place = list(self._slots).index(packed.data_ptr())
        every = [[c.data_ptr() if i == place else s for i, s in enumerate(self._slots)] for c in self._copies]
        self._turns = cycle([(ctypes.c_int64 * len(slots))(*slots) for slots in every])

    @property
    def bytes(self) -> int:
        """Of one packed weight."""
        return self._copies[0].nbytes

    def __call__(self) -> None:
        self._function(next(self._turns))


def pruned(outputs: int, inputs: int, pattern: Pattern) -> torch.Tensor:
    """A random weight of whose each M neighbours N are not zero."""
    kept = torch.rand(outputs, inputs // pattern.m, pattern.m).argsort(2) < pattern.n
    return torch.randn(outputs, inputs) * kept.view(outputs, inputs)


def spec_of(product: Product, dtype: str, sparsity: Sparsity | None) -> KernelSpec:
    """The product with factors of ``dtype``; bias and result stay float32."""
    spec = product.spec()
    operands = [replace(o, dtype=dtype) if i < 2 else o for i, o in enumerate(spec.operands)]
    operands[1] = replace(operands[1], sparsity=sparsity)
    body = (replace(i, dtype=dtype) if i.op == "load" and i["operand"] < 2 else i for i in spec.body)
    return replace(spec, operands=tuple(operands), body=tuple(body))


def compiled(product: Product, patterns: list[Pattern], dtype: str, threads: int, near: bool) -> Iterator[Layers]:
    """The dense kernel, then what is chosen for each of the patterns."""
    n, k, held = product.n, product.k, TORCH_DTYPES[dtype]
    x, copies = torch.randn(product.m * k).to(held), 1 if near else -(-FAR // (n * k * held.itemsize))
    for pattern in (None, *patterns):
        weight = torch.randn(n, k) if pattern is None else pruned(n, k, pattern)
        known = None if pattern is None else Sparsity.of_each(pattern.n, pattern.m, n * k)
        found = packing(spec_of(product, dtype, known), [1], Target.host())
        assert isinstance(found, Packing), found
        yield Layers(found, x, weight.to(held), threads, copies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--patterns", default=",".join(PATTERNS))
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--near", action="store_true", help="one copy of each weight")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    patterns = [Pattern.parse(text) for text in arguments.patterns.split(",")]
    print("| layer | rows | dense | " + " | ".join(map(str, patterns)) + " |")
    print("|---" * (len(patterns) + 3) + "|")
    for k, n in LAYERS:
        for m in map(int, arguments.rows.split(",")):
            product = Product(k, n, m, planes=False)
            runs = list(compiled(product, patterns, arguments.dtype, arguments.threads, arguments.near))
            dense, *sparse = least(runs, arguments.rounds)
            cells = " | ".join(
                f"{dense / s:.2f}" if run.is_sparse else "dense" for s, run in zip(sparse, runs[1:], strict=True)
            )
            speed = f"{1e6 * dense:.0f} us, {1e-9 * runs[0].bytes / dense:.1f} GB/s"
            print(f"| {k} to {n} | {m} | {speed} | {cells} |", flush=True)
    shares = (f"{runs[0].bytes / run.bytes:.2f}" if run.is_sparse else "dense" for run in runs[1:])
    print(f"| by bytes | {m} | | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
