"""Few rows times N:M weights, against our own dense kernel: python tools/sparse_gemv.py --threads 1

Each cell is the dense kernel's time over the sparse one's, each the least of some rounds in turn in one process, float32, random weights.
The last line is what the bytes alone would give: those of a dense weight over those of values and positions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import torch
from sparse_kernels import Product, Runs, least

from effc.compiler.codegen.cpu.schedules import Packing, packing
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.pattern import Pattern
from effc.compiler.ir.sparsity import Sparsity

#: Inputs, outputs: layers of SmolLM2-135M, of BERT-base, and two whose weights are larger than the second- and than most third-level caches.
LAYERS = ((576, 1536), (1536, 576), (768, 3072), (2048, 2048), (4096, 4096))
ROWS = (1, 2, 4, 8)
PATTERNS = ("2:4", "1:4", "4:8", "2:8", "4:16")


def pruned(outputs: int, inputs: int, pattern: Pattern) -> torch.Tensor:
    """A random weight of whose each M neighbours N are not zero."""
    kept = torch.rand(outputs, inputs // pattern.m, pattern.m).argsort(2) < pattern.n
    return torch.randn(outputs, inputs) * kept.view(outputs, inputs)


def compiled(product: Product, patterns: list[Pattern], threads: int) -> Iterator[Runs]:
    """The dense kernel, then what is chosen for each of the patterns."""
    spec, x = product.spec(), torch.randn(product.m * product.k)
    weights = [torch.randn(product.n, product.k), *(pruned(product.n, product.k, p) for p in patterns)]
    known = [None, *(Sparsity.of_each(p.n, p.m, product.n * product.k) for p in patterns)]
    for weight, sparsity in zip(weights, known, strict=True):
        operands = tuple(replace(o, sparsity=sparsity) if i == 1 else o for i, o in enumerate(spec.operands))
        found = packing(replace(spec, operands=operands), [1], Target.host())
        assert isinstance(found, Packing), found
        assert found.function == ("pack_panels" if sparsity is None else "group_panels"), "it is dense"
        yield Runs(found, x, weight, threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--patterns", default=",".join(PATTERNS))
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    patterns = [Pattern.parse(text) for text in arguments.patterns.split(",")]
    print("| layer | rows | dense | " + " | ".join(map(str, patterns)) + " |")
    print("|---" * (len(patterns) + 3) + "|")
    for k, n in LAYERS:
        for m in map(int, arguments.rows.split(",")):
            runs = list(compiled(Product(k, n, m, planes=False), patterns, arguments.threads))
            dense, *sparse = least(runs, arguments.rounds)
            cells = " | ".join(f"{dense / s:.2f}" for s in sparse)
            print(f"| {k} to {n} | {m} | {1e6 * dense:.0f} us, {4e-9 * n * k / dense:.1f} GB/s | {cells} |", flush=True)
    sizes = [run.held[1][1].numel() for run in runs]
    print("| by bytes | | | " + " | ".join(f"{sizes[0] / size:.2f}" for size in sizes[1:]) + " |")


if __name__ == "__main__":
    main()
