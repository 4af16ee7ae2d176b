"""Reading and writing by index tensors against eager through the evaluator; indices out of range raise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import importer_harness
import pytest
import torch
import torch.nn.functional as F
from importer_harness import compile_and_run
from torch import Tensor

agrees = partial(importer_harness.agrees, tolerance=1e-6)
X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(2))
I = torch.tensor([[0, -1], [3, 2]])  # noqa: E741
J = torch.tensor([1, -2])
READS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "one": lambda x, i, j: x[i],
    "middle": lambda x, i, j: x[:, i],
    "adjacent": lambda x, i, j: x[:, i, j],
    "apart": lambda x, i, j: x[i, :, j],
    "all": lambda x, i, j: x[i, j, i],
    "last": lambda x, i, j: x[..., j],
    "with_slices": lambda x, i, j: x[1:, i, ::2],
    "select": lambda x, i, j: x.index_select(1, i[1]),
    "take": lambda x, i, j: x.take(i * 7),
    "gather": lambda x, i, j: x.gather(1, (i.abs() % 4)[:, :, None].expand(2, 2, 3)),
    "take_along": lambda x, i, j: torch.take_along_dim(x, x.argmax(1, keepdim=True), 1),
    "int32": lambda x, i, j: x[i.int()],
}


@pytest.mark.parametrize("name", READS)
def test_reads(name: str) -> None:
    agrees(READS[name], X, I, J)


@pytest.mark.parametrize("name", [n for n in READS if n != "gather"])
def test_reads_with_symbolic_sizes(name: str) -> None:
    agrees(READS[name], X, I, J, dynamic=True)


def test_embedding() -> None:
    table, tokens = torch.randn(10, 4), torch.tensor([[1, 9, 0], [3, 3, 2]])
    agrees(lambda t, i: F.embedding(i, t), table, tokens)
    agrees(lambda t, i: F.embedding(i, t, padding_idx=3), table, tokens, dynamic=True)
    agrees(lambda t, i: F.embedding(i, t), table, torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: x[i],
        lambda x, i: x.index_select(0, i.abs()),
        lambda x, i: F.embedding(i, x),
        lambda x, i: x.gather(0, i[:, None]),
        lambda x, i: x.index_put((i,), x[0]),
        lambda x, i: x.index_add(0, i, x[:2]),
        lambda x, i: x.scatter(0, i[:, None], 1.0),
    ],
)
def test_an_index_out_of_range_raises(function: Callable[..., Tensor]) -> None:
    x = torch.randn(3, 4)
    with pytest.raises(IndexError, match="out of"):
        compile_and_run(function, [x, torch.tensor([0, 3])])
    if function.__code__.co_code != (lambda x, i: x[i]).__code__.co_code:
        return
    with pytest.raises(IndexError, match="out of bounds for dimension 0 with size 3"):
        compile_and_run(function, [x, torch.tensor([-4, 0])])


def test_embedding_refuses_negative_tokens() -> None:
    with pytest.raises(IndexError):
        compile_and_run(lambda x, i: F.embedding(i, x), [torch.randn(3, 4), torch.tensor([-1])])


WRITES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "index_put": lambda x, i, j: x.index_put((i,), torch.ones(5, 6)),
    "index_put_two": lambda x, i, j: x.index_put((i, j), torch.zeros(6)),
    "index_put_apart": lambda x, i, j: torch.ops.aten.index_put(
        x, [i, None, j], x[0, :, :1, None].permute(1, 2, 0)[0] * 0 + 2
    ),
    "accumulate": lambda x, i, j: x.index_put((torch.cat([j.abs(), j.abs()]),), torch.ones(4, 5, 6), accumulate=True),
    "masked": lambda x, i, j: x.index_put((x > 0,), torch.tensor(-1.0)),
    "index_add": lambda x, i, j: x.index_add(1, torch.tensor([1, 1, 4]), x[:, :3], alpha=2),
    "index_copy": lambda x, i, j: x.index_copy(0, j.abs(), x[:2] * 3),
    "index_fill": lambda x, i, j: x.index_fill(2, j, 9.0),
    "scatter": lambda x, i, j: x.scatter(1, torch.tensor([[[0, 3], [2, 1]]]), x[:1, :2, :2] * 2),
    "scatter_value": lambda x, i, j: x.scatter(2, torch.tensor([[[5, 0]]]), 7.0),
    "scatter_add": lambda x, i, j: x.scatter_add(0, torch.zeros(4, 5, 6, dtype=torch.int64), x),
    "scatter_max": lambda x, i, j: x.scatter_reduce(1, x.argmax(1, keepdim=True), x[:, :1], "amax"),
    "scatter_prod": lambda x, i, j: x.scatter_reduce(
        1, torch.ones(4, 3, 6, dtype=torch.int64), x[:, :3], "prod", include_self=False
    ),
    "scatter_mean": lambda x, i, j: x.scatter_reduce(1, torch.ones(4, 3, 6, dtype=torch.int64), x[:, :3], "mean"),
    "masked_scatter_value": lambda x, i, j: x.masked_fill(x > 0, 1.0),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes(name: str) -> None:
    agrees(WRITES[name], X, I, J, tolerance=1e-5)


@pytest.mark.parametrize("name", ["index_put", "index_put_two", "index_copy", "scatter_add", "scatter_max"])
def test_writes_with_symbolic_sizes(name: str) -> None:
    agrees(WRITES[name], X, I, J, dynamic=True, tolerance=1e-5)


def test_writes_of_16_bit_floats_and_integers() -> None:
    agrees(lambda x: x.index_add(0, torch.tensor([1, 1]), x[:2]), torch.randn(3, 4).bfloat16(), tolerance=1e-2)
    agrees(lambda x: x.index_add(0, torch.tensor([1, 1]), x[:2]), torch.arange(12).reshape(3, 4), tolerance=0)
    agrees(lambda x: x.scatter_reduce(0, torch.tensor([[1, 1, 0, 0]]), x[:1], "amin"), torch.arange(12).reshape(3, 4))


def test_a_decode_step_writes_one_row_of_its_cache() -> None:
    cache, row = torch.zeros(2, 8, 4), torch.randn(2, 1, 4)

    def step(cache: Tensor, row: Tensor, position: Tensor) -> Tensor:
        cache.index_copy_(1, position, row)
        return cache.sum(1)

    kept = cache.clone()
    expected = step(kept, row, torch.tensor([3]))
    found, capture = compile_and_run(step, [cache, row, torch.tensor([3])])
    assert capture.refused == []
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(cache, kept)
    assert "effc.mutates" in capture.regions[0].text
