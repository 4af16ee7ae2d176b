"""Capture by itself: whatever part of a graph is compiled, the function and its effects stay those of eager."""

from __future__ import annotations

import copy
import random
import threading
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture_fakes import Stand
from torch import Tensor, nn
from torch.fx import Node

from effc.compiler.capture import record


def everything(node: Node) -> bool:
    return False


def nothing(node: Node) -> bool:
    return True


def drawn(seed: int) -> Callable[[Node], bool]:
    """Refuses a third of the nodes, always the same ones for a seed."""
    return lambda node: random.Random(zlib.crc32(node.name.encode()) + seed).random() < 0.33


CHOICES = [everything, nothing, *(drawn(seed) for seed in range(4))]
CHOICE_NAMES = ["all", "none", "drawn0", "drawn1", "drawn2", "drawn3"]
choices = pytest.mark.parametrize("refuse", CHOICES, ids=CHOICE_NAMES)


class Net(nn.Module):
    """Convolution, batch norm, linear, a written buffer, outputs that are views of each other."""

    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(16, 24)
        self.register_buffer("cache", torch.zeros(4, 24))

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        y = nn.functional.gelu(self.linear(torch.relu(self.norm(self.conv(x)))))
        old = self.cache.sum(0)
        self.cache[1:3] = y[0, 0, :2].detach()
        return y, y.view(-1), x.shape[0] * 2, y.transpose(-1, -2), old + self.cache.mean(0), x[:, 1], None


def same(ours: Any, eager: Any) -> None:
    assert type(ours) is type(eager)
    if isinstance(eager, tuple | list):
        assert len(ours) == len(eager)
        for a, b in zip(ours, eager, strict=True):
            same(a, b)
    elif isinstance(eager, Tensor):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5, equal_nan=True)
        assert ours.stride() == eager.stride()
    else:
        assert ours == eager


def prefixed(name: str) -> Callable[[str], str]:
    return lambda message: f"{name}: {message}"


def run_both(model: nn.Module, compiled: Callable[..., Any], twin: nn.Module, *inputs: Any) -> None:
    copies = copy.deepcopy(inputs)
    same(compiled(*inputs), twin(*copies))
    same(list(inputs), list(copies))
    for (name, ours), (_, theirs) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=prefixed(name))


@choices
@pytest.mark.parametrize("dynamic", [False, True])
def test_inference(refuse: Callable[[Node], bool], dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(refuse).install(monkeypatch)
    model = Net().eval()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend=stand.backend, dynamic=dynamic, fullgraph=True)
    with torch.no_grad():
        run_both(model, compiled, twin, torch.randn(2, 3, 8, 16))
        run_both(model, compiled, twin, torch.randn(5, 3, 8, 16))


@choices
def test_training_with_batch_statistics(refuse: Callable[[Node], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(refuse).install(monkeypatch)
    model = Net().train()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend=stand.backend)
    for _ in range(2):
        x = torch.randn(2, 3, 8, 16, requires_grad=True)
        z = x.detach().clone().requires_grad_()
        ours, eager = compiled(x), twin(z)
        same(
            [o.detach() if isinstance(o, Tensor) else o for o in ours],
            [o.detach() if isinstance(o, Tensor) else o for o in eager],
        )
        (ours[0].sin().sum() + ours[3].mean()).backward()
        (eager[0].sin().sum() + eager[3].mean()).backward()
        torch.testing.assert_close(x.grad, z.grad, rtol=1e-3, atol=1e-4)
    for (name, p), (_, q) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3, msg=prefixed(name))
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@choices
def test_views_of_one_result_share_memory(refuse: Callable[[Node], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        y = x.exp() + 1
        return y, y.view(-1), y.t(), y[1:], *y.split(1), *y.chunk(2, 1)

    stand = Stand(refuse).install(monkeypatch)
    outputs = torch.compile(f, backend=stand.backend)(torch.randn(3, 4))
    assert len({o.untyped_storage().data_ptr() for o in outputs}) == 1
    outputs[0].zero_()
    assert all(not o.any() for o in outputs)


@choices
def test_readers_of_an_input_see_it_before_it_is_written(
    refuse: Callable[[Node], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def f(cache: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        before = cache[1:].sort(dim=0).values * 2
        row = cache[0] + x
        cache[2] = x.cos()
        cache.mul_(0.5)
        return before, row, cache + 1, cache.view(-1)[3:]

    stand = Stand(refuse).install(monkeypatch)
    cache, x = torch.randn(4, 6), torch.randn(6)
    twin = cache.clone()
    with torch.no_grad():
        same(torch.compile(f, backend=stand.backend)(cache, x), f(twin, x))
    same(cache, twin)


@choices
def test_random_numbers_are_those_of_eager(refuse: Callable[[Node], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: Tensor) -> Tensor:
        y = nn.functional.dropout(x.exp(), 0.4)
        return nn.functional.dropout(y * torch.rand_like(x), 0.2) + torch.randn(5)

    def refuse_random(node: Node) -> bool:
        return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) or refuse(node)

    stand = Stand(refuse_random).install(monkeypatch)
    x = torch.randn(3, 5)
    torch.manual_seed(7)
    expected = f(x)
    torch.manual_seed(7)
    same(torch.compile(f, backend=stand.backend)(x), expected)


@choices
def test_placements_of_inputs(refuse: Callable[[Node], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(x) * 2 + y, nn.functional.max_pool2d(x, 2)

    stand = Stand(refuse).install(monkeypatch)
    compiled = torch.compile(f, backend=stand.backend)
    dense = torch.randn(2, 4, 6, 6)
    for x in (
        dense,
        dense.to(memory_format=torch.channels_last),
        torch.randn(1 + 2 * 4 * 36)[1:].view(2, 4, 6, 6),
        torch.randn(2, 4, 12, 6)[:, :, ::2],
        dense.transpose(2, 3),
        torch.randn(1, 4, 1, 1).expand(2, 4, 6, 6),
        torch.randn(0, 4, 6, 6),
    ):
        same(compiled(x, x.clone()), f(x, x.clone()))


@choices
def test_numbers_and_none_among_inputs(refuse: Callable[[Node], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: Tensor, n: int, scale: float, mask: Tensor | None, flag: bool) -> Tensor:
        y = x.repeat(n, 1) * scale
        return y if mask is None or flag else y.masked_fill(mask, float("nan"))

    stand = Stand(refuse).install(monkeypatch)
    compiled = torch.compile(f, backend=stand.backend)
    x = torch.randn(3, 5)
    for arguments in ((x, 2, 0.5, None, False), (x, 3, 1.5, None, True), (x, 4, 2.5, x.repeat(4, 1) > 0, False)):
        same(compiled(*arguments), f(*arguments))


@choices
def test_graph_breaks(refuse: Callable[[Node], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: Tensor) -> Tensor:
        y = x.sin() + 1
        torch._dynamo.graph_break()
        return (y * 2).sum(0) if y.sum() > 0 else y - 1

    stand = Stand(refuse).install(monkeypatch)
    x = torch.randn(4, 5)
    same(torch.compile(f, backend=stand.backend)(x), f(x))


@choices
def test_sizes_that_depend_on_data(refuse: Callable[[Node], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: Tensor) -> Tensor:
        return (x[x > 0].exp() * 2).sum() + torch.zeros(3)

    stand = Stand(lambda n: "nonzero" in str(n.target) or "index" in str(n.target) or refuse(n)).install(monkeypatch)
    x = torch.randn(20)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        same(torch.compile(f, backend=stand.backend, fullgraph=True)(x), f(x))


@choices
@pytest.mark.parametrize("inference", [False, True])
def test_autocast(refuse: Callable[[Node], bool], inference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(refuse).install(monkeypatch)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    compiled = torch.compile(model, backend=stand.backend)
    x = torch.randn(4, 6)
    with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16):
        ours, eager = compiled(x), model(x)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, eager, rtol=2e-2, atol=2e-2)


@choices
def test_unsigned_bytes_keep_their_dtype(refuse: Callable[[Node], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(refuse).install(monkeypatch)
    x = torch.randint(0, 256, (5, 7), dtype=torch.uint8)
    same(torch.compile(lambda x: (x * 2 + 1).t() // 3, backend=stand.backend)(x), (x * 2 + 1).t() // 3)


def test_calls_from_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(drawn(1)).install(monkeypatch)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    compiled = torch.compile(model, backend=stand.backend)
    inputs = [torch.randn(4, 16) for _ in range(4)]
    failures: list[BaseException] = []
    with torch.no_grad():
        compiled(inputs[0])

    def work(x: Tensor) -> None:
        try:
            with torch.no_grad():
                for _ in range(50):
                    same(compiled(x), model(x))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_one_region_where_everything_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand().install(monkeypatch)
    with torch.no_grad(), record() as recording:
        torch.compile(Net().eval(), backend=stand.backend)(torch.randn(2, 3, 8, 16))
    (graph,) = recording.graphs
    assert len(graph.regions) == 1
    assert graph.fallbacks == []
    assert graph.flops_compiled == 2 * 2 * 8 * 8 * 16 * 27 + 2 * (2 * 8 * 8) * 16 * 24
    assert sorted(stand.params) == [
        "conv.bias", "conv.weight", "linear.bias", "linear.weight",
        "norm.bias", "norm.running_mean", "norm.running_var", "norm.weight",
    ]  # fmt: skip


def test_branches_around_one_refused_op_make_two_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        a, b = x.exp() + 1, y.exp() + 2
        return a.sort(0).values * 2 + b.sort(1).values * 3 + (a - b)

    stand = Stand(lambda n: "sort" in str(n.target)).install(monkeypatch)
    with record() as recording:
        torch.compile(f, backend=stand.backend)(torch.randn(4, 4), torch.randn(4, 4))
    (graph,) = recording.graphs
    assert len(graph.regions) == 2
    assert {f.op for f in graph.fallbacks} == {"aten.sort.default"}


def test_a_cast_of_a_weight_waits_until_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                assert isinstance(layer, nn.Linear)
                x = nn.functional.linear(x, layer.weight.double()).sort(-1).values
            return x

    stand = Stand(lambda n: "sort" in str(n.target)).install(monkeypatch)
    with torch.no_grad():
        torch.compile(Deep(), backend=stand.backend)(torch.randn(2, 4).double())
    for executable in stand.executables.values():
        assert len(executable.region.outputs) == 1  # no cast weight is handed from one region to a later one


def test_views_alone_are_no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand().install(monkeypatch)
    with record() as recording:
        y = torch.compile(lambda x: x.t()[1:].clone(), backend=stand.backend)(torch.randn(3, 4))
    assert y.shape == (3, 3)
    assert recording.graphs[0].regions == []


def test_a_single_view_of_a_result_is_the_regions_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand().install(monkeypatch)
    linear = nn.Linear(4, 6)
    with torch.no_grad():
        torch.compile(linear, backend=stand.backend)(torch.randn(2, 3, 4))
    (executable,) = stand.executables.values()
    (output,) = executable.region.outputs
    assert tuple(output.meta["val"].shape) == (2, 3, 6)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_reshape_written_as_strided_is_a_view(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(lambda n: "as_strided" in str(n.target)).install(monkeypatch)
    norm = nn.GroupNorm(2, 6)
    x = torch.randn(3, 6, 5, 4)
    with torch.no_grad(), record() as recording:
        same(torch.compile(norm, backend=stand.backend, dynamic=dynamic)(x), norm(x))
    assert [len(g.regions) for g in recording.graphs] == [1]


def test_what_only_looks_like_a_reshape_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.as_strided(x + 1, (3, 4), (1, 3)) * 2, torch.as_strided(x + 1, (2, 4), (4, 1), 4) * 2

    stand = Stand(lambda n: "as_strided" in str(n.target)).install(monkeypatch)
    x = torch.randn(3, 4)
    same(torch.compile(f, backend=stand.backend)(x), f(x))
