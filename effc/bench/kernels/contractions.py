"""Products of matrices: with constant weights for one to many rows, and of two inputs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from effc.bench.kernels.kernel import Function, Kernel, normals

#: K, N: of BERT-base, and a square one; then what no L3 holds: a square of a large language model, a head over 49152 tokens.
_WEIGHTS = ((768, 768), (768, 3072), (3072, 768), (1024, 1024))
_LARGE = ((4096, 4096), (576, 49152))

#: Batch, M, K, N: squares, and both products of attention written out.
_PRODUCTS = ((1, 512, 512, 512), (1, 1024, 1024, 1024), (12, 128, 64, 128), (12, 128, 128, 64), (8, 197, 64, 197))


def kernels() -> Iterator[Kernel]:
    for m in (1, 4, 32, 128, 512):
        for k, n in (*_WEIGHTS, *(_LARGE if m <= 4 else ())):
            yield Kernel(f"linear M={m}/{k}x{n}", partial(nn.Linear, k, n), normals((m, k)))
    yield Kernel("linear M=997/509x1021", partial(nn.Linear, 509, 1021), normals((997, 509)))
    for b, m, k, n in _PRODUCTS:
        name = f"{b}x{m}x{k}x{n}"
        yield Kernel(f"matmul/{name}", partial(Function, torch.matmul), normals((b, m, k), (b, k, n)))
    b, m, k, n = _PRODUCTS[0]
    yield Kernel(
        f"matmul transposed/{b}x{m}x{k}x{n}",
        partial(Function, lambda x, y: x.mT @ y.mT),
        normals((b, k, m), (b, n, k)),
    )
    rows, columns = 8192, 4096
    yield Kernel(
        f"matrix·vector/{rows}x{columns}",
        partial(Function, torch.mv),
        normals((rows, columns), (columns,)),
        flops=2 * rows * columns,  # torch's counter knows no mv
    )
