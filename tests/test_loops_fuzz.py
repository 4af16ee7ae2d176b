"""Random nests of the loops template against torch: orders of dims, layouts, broadcasts, reductions, symbols, targets."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from kernels import Kernel, LoopsBuilder
from torch import Tensor

APPLY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "arith.addf": torch.add, "arith.mulf": torch.mul, "arith.subf": torch.sub,
}  # fmt: skip
SIZES = (1, 2, 3, 5, 8, 16, 17, 31, 33, 48, 67)


def address(strides: Sequence[int]) -> str:
    return " + ".join(f"{s}*d{i}" for i, s in enumerate(strides)) or "0"


def permuted(rng: random.Random, sizes: list[int], used: list[int]) -> tuple[Tensor, list[int]]:
    """A tensor over the dims ``used`` (size 1 in the others) whose memory order is random, and its strides (0: broadcast)."""
    order = used.copy()
    rng.shuffle(order)
    strides, step = [0] * len(sizes), 1
    for i in reversed(order):
        strides[i] = step
        step *= sizes[i]
    storage = torch.randn(max(step, 1))
    shape = [sizes[i] if i in used else 1 for i in range(len(sizes))]
    return storage.as_strided(shape, [s if s else 1 for s in strides]), strides


@pytest.mark.parametrize("seed", range(60))
def test_random_nest(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    rank = rng.randint(1, 4)
    sizes = [rng.choice(SIZES) for _ in range(rank)]
    while torch.Size(sizes).numel() > 60_000:
        sizes[sizes.index(max(sizes))] = rng.choice((1, 2, 3))
    parallel = rng.randint(0, rank)  # dims from here on are reduced
    reduces = parallel < rank
    symbolic = rng.random() < 0.4
    dims: list[tuple[int | str, str]] = [
        (f"s{i}" if symbolic else n, "parallel" if i < parallel else "reduction") for i, n in enumerate(sizes)
    ]
    inputs = [permuted(rng, sizes, [i for i in range(rank) if rng.random() < 0.75]) for _ in range(rng.randint(1, 3))]
    layout, out_strides = permuted(rng, sizes, list(range(parallel)))
    operands = [("f32", "read", t.untyped_storage().nbytes() // 4) for t, _ in inputs]
    operands.append(("f32", "write", layout.untyped_storage().nbytes() // 4))
    k = LoopsBuilder(dims, operands)
    values = [k.load(i, address(strides)) for i, (_, strides) in enumerate(inputs)]
    total, reference = values[0], inputs[0][0].double().expand(sizes)
    for value, (tensor, _) in zip(values[1:], inputs[1:], strict=True):
        op = rng.choice(list(APPLY))
        total = k.op(op, total, value)
        reference = APPLY[op](reference, tensor.double().expand(sizes))
    if rng.random() < 0.3:
        total, reference = k.op("math.exp", total), reference.exp()
    if reduces:
        kind = rng.choice(("add", "max"))
        over = tuple(range(parallel, rank))
        total = k.reduce(kind, total)
        reference = reference.sum(over, keepdim=True) if kind == "add" else reference.amax(over, keepdim=True)
    k.store(len(inputs), address(out_strides[:parallel]), total)
    storage = torch.full((layout.untyped_storage().nbytes() // 4,), float("nan"))
    out = storage.as_strided(layout.shape, layout.stride())
    symbols = [f"s{i}" for i in range(rank)] if symbolic else []
    kernel = Kernel(k.spec(symbols), rng.choice(("host", "host", "avx2", "x86-64")))
    for threads in (1, 2):
        storage.fill_(float("nan"))
        kernel([*(t for t, _ in inputs), storage], sizes if symbolic else [], threads=threads)
        torch.testing.assert_close(out, reference.float(), rtol=2e-5, atol=2e-5)
