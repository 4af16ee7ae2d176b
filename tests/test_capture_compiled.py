"""Capture with the real compiler behind it: the ways in which a user's program calls a compiled model."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import assert_exact
from torch import Tensor, nn

import effc
from effc.compiler.capture import record

Compiler = Callable[..., Callable[..., Any]]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(24, 40)
        self.down = nn.Linear(40, 7)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.down(nn.functional.gelu(self.up(x))), -1)


def test_one_region_and_exact(compiled: Compiler) -> None:
    model = Mlp().eval()
    with torch.no_grad(), record() as recording:
        assert_exact(model, (torch.randn(5, 24),), compiled(model), strides=True)
    assert [len(g.regions) for g in recording.graphs] == [1]
    assert {k.template for k in recording.graphs[0].regions[0].kernels} == {"contraction", "loops"}


def test_weights_are_followed_where_modules_have_no_guards() -> None:
    model, x = Mlp().eval(), torch.randn(5, 24)
    unguarded = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    fast = torch.compile(model, backend="effc", options={"fallback": "error", **unguarded})
    with torch.no_grad():
        assert_exact(model, (x,), fast)
        model.up.weight.mul_(2)
        assert_exact(model, (x,), fast)
        model.load_state_dict(Mlp().state_dict())
        assert_exact(model, (x,), fast)
        model.down.weight = nn.Parameter(torch.randn(7, 40))
        assert_exact(model, (x,), fast)


def test_dynamic_sizes_compile_once(compiled: Compiler) -> None:
    model = Mlp().eval()
    fast = compiled(model, dynamic=True, fullgraph=True)
    with torch.no_grad(), record() as recording:
        for batch in (5, 2, 17, 64):
            assert_exact(model, (torch.randn(batch, 24),), fast)
    assert len(recording.graphs) == 1


def test_sizes_divided_by_quotients_of_sizes(compiled: Compiler) -> None:
    """Windows whose number is a quotient of a size (Swin): no default for a size may make a divisor 0."""

    def windows(x: Tensor) -> Tensor:
        count = x.shape[1] // 80
        return x.reshape(x.shape[0], count, x.shape[1] // count).transpose(1, 2).contiguous() + 1

    fast = compiled(windows, dynamic=True, fullgraph=True)
    with torch.no_grad(), record() as recording:
        for size in (160, 240):
            assert_exact(windows, (torch.randn(5, size),), fast)
    assert not [f.reason for g in recording.graphs for f in g.fallbacks]


def test_gradients(compiled: Compiler) -> None:
    model = Mlp()
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend="effc")
    for _ in range(2):
        x = torch.randn(6, 24, requires_grad=True)
        z = x.detach().clone().requires_grad_()
        fast(x).square().sum().backward()
        twin(z).square().sum().backward()
        torch.testing.assert_close(x.grad, z.grad)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_training_follows_the_optimizer() -> None:
    model = Mlp()
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend="effc")
    functions: tuple[Callable[[Tensor], Tensor], ...] = (fast, twin)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (model, twin)]
    for _ in range(3):
        x = torch.randn(6, 24)
        for function, optimizer in zip(functions, optimizers, strict=True):
            optimizer.zero_grad()
            function(x).square().sum().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_weights_written_in_place_are_seen(compiled: Compiler) -> None:
    model = Mlp().eval()
    fast = compiled(model)
    x = torch.randn(5, 24)
    with torch.no_grad():
        fast(x)
        model.up.weight.mul_(-2)
        torch.testing.assert_close(fast(x), model(x))
        model.load_state_dict(Mlp().state_dict())
        torch.testing.assert_close(fast(x), model(x))


class Cached(nn.Module):
    keys: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(2, 16, 8))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        self.keys[:, position] = x
        return (self.keys * x).sum(-1)


def test_a_cache_is_written_in_place(compiled: Compiler) -> None:
    model = Cached()
    twin = copy.deepcopy(model)
    fast = compiled(model)
    address = model.keys.data_ptr()
    with torch.no_grad():
        for step in range(3):
            x, position = torch.randn(2, 1, 8), torch.tensor([step])
            torch.testing.assert_close(fast(x, position), twin(x, position))
    assert torch.equal(model.keys, twin.keys)
    assert model.keys.data_ptr() == address


def test_statistics_of_a_batch_norm_in_training() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend="effc")
    for _ in range(2):
        x = torch.randn(2, 3, 7, 7)
        torch.testing.assert_close(fast(x), twin(x))
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("place", ["transposed", "offset", "strided", "expanded", "channels_last", "empty"])
def test_placements_of_inputs(place: str, compiled: Compiler) -> None:
    x = {
        "transposed": lambda: torch.randn(2, 5, 7, 3).transpose(1, 3),
        "offset": lambda: torch.randn(1 + 2 * 3 * 7 * 5)[1:].view(2, 3, 7, 5),
        "strided": lambda: torch.randn(2, 3, 14, 10)[:, :, ::2, ::2],
        "expanded": lambda: torch.randn(1, 3, 1, 5).expand(2, 3, 7, 5),
        "channels_last": lambda: torch.randn(2, 3, 7, 5).to(memory_format=torch.channels_last),
        "empty": lambda: torch.randn(0, 3, 7, 5),
    }[place]()

    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(x) * 2, x.transpose(1, 2) + 1

    assert_exact(f, (x,), compiled(f), strides=True)


def test_views_of_a_result_share_its_memory(compiled: Compiler) -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        y = x.exp() + 1
        return y, y.view(-1), y.t(), y[1:]

    outputs = compiled(f)(torch.randn(3, 4))
    assert len({o.untyped_storage().data_ptr() for o in outputs}) == 1


@pytest.mark.parametrize("inference", [False, True])
def test_autocast(inference: bool, compiled: Compiler) -> None:
    model = Mlp().eval()
    fast = compiled(model)
    x = torch.randn(5, 24)
    with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16):
        ours, eager = fast(x), model(x)
    assert ours.dtype == eager.dtype
    torch.testing.assert_close(ours, eager, rtol=2e-2, atol=2e-2)


def test_a_graph_break_makes_two_graphs() -> None:
    def f(x: Tensor) -> Tensor:
        y = x.sin() + 1
        torch._dynamo.graph_break()
        return y * 2

    x = torch.randn(4, 5)
    with record() as recording:
        torch.testing.assert_close(torch.compile(f, backend="effc")(x), f(x))
    assert [len(g.regions) for g in recording.graphs] == [1, 1]


def test_aten_in_the_middle() -> None:
    def f(x: Tensor) -> Tensor:
        inverse: Tensor = torch.linalg.inv(x.exp() + torch.eye(6))
        return inverse * 2 + x

    x = torch.randn(6, 6)
    with record() as recording:
        torch.testing.assert_close(torch.compile(f, backend="effc")(x), f(x))
    (graph,) = recording.graphs
    assert len(graph.regions) == 2
    assert [g.op for g in graph.fallbacks] == ["aten.linalg_inv_ex.default", "aten._linalg_check_errors.default"]


def test_results_of_aten_may_have_other_strides_than_promised() -> None:
    @torch.library.custom_op("effc_tests::other_way_round", mutates_args=())
    def other_way_round(x: Tensor) -> Tensor:
        return x.t().contiguous().t()

    @other_way_round.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    def f(x: Tensor) -> Tensor:
        turned: Tensor = other_way_round(x * 2)
        return turned + 1

    x = torch.randn(5, 7)
    torch.testing.assert_close(torch.compile(f, backend="effc")(x), f(x))


def test_calls_from_several_threads(compiled: Compiler) -> None:
    model = Mlp().eval()
    fast = compiled(model)
    inputs = [torch.randn(5, 24) for _ in range(4)]
    expected = [model(x).detach() for x in inputs]
    wrong: list[Any] = []
    with torch.no_grad():
        fast(inputs[0])

    def work(x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            wrong.extend(i for i in range(100) if not torch.allclose(fast(x), y, rtol=1e-5, atol=1e-6))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


def test_a_model_inside_another(compiled: Compiler) -> None:
    inner = compiled(Mlp().eval())

    def outer(x: Tensor) -> Tensor:
        y: Tensor = inner(x + 1)
        return y * 2

    x = torch.randn(5, 24)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(outer, backend="effc")(x), outer(x))


def test_check_passes_on_a_right_model() -> None:
    model = Mlp().eval()
    with torch.no_grad():
        torch.compile(model, backend="effc", options={"check": True})(torch.randn(5, 24))


def test_options_object_is_taken_too() -> None:
    x = torch.randn(4)
    options = effc.Options(fallback="error")
    assert torch.equal(torch.compile(lambda x: x + 1, backend="effc", options=options)(x), x + 1)  # type: ignore[call-overload]


_SCRIPT = """
import sys, torch
def f(x): return torch.relu(x + 1) * 3
x = torch.randn(9)
torch.testing.assert_close(torch.compile(f, backend="effc", options={"fallback": "error"})(x), f(x))
from effc.compiler.toolchain import toolchain
import effc.compiler.build as build
print(build.counters["program_hits"], build.counters["program_misses"], "torch_mlir" in sys.modules, toolchain().started)
"""


def test_a_second_process_starts_no_toolchain(cache_dir: Path, tmp_path: Path) -> None:
    def run() -> str:
        command = [sys.executable, "-P", "-c", _SCRIPT]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split("\n")[0]

    hits, misses, mlir, started = run().split()
    assert (hits, misses, mlir) == ("0", "1", "False")
    assert int(started) > 0
    assert run() == "1 0 False 0"


def test_what_depends_on_weights_and_sizes_follows_the_sizes() -> None:
    """A row of a table spread over a symbolic size is no constant, though it reads nothing but a parameter."""

    class Positions(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(64, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows: Tensor = self.table(torch.arange(x.shape[0])).sin()
            first: Tensor = self.table(torch.zeros(x.shape[:1], dtype=torch.int64))
            return x.shape[0] * rows + first * x

    model = Positions()
    with torch.no_grad(), record() as recording:
        compiled = torch.compile(model, backend="effc", dynamic=True)
        for size in (5, 9, 33):
            x = torch.randn(size, 8)
            torch.testing.assert_close(compiled(x), model(x))
    assert not [f.reason for g in recording.graphs for f in g.fallbacks]


@pytest.mark.parametrize("kind", ["constant", "rolled", "gathered", "masked", "padded"])
def test_a_factor_that_no_kernel_reads_in_place_is_copied_out(kind: str) -> None:
    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if kind == "constant":
            return x @ torch.ones(4, 3)
        if kind == "rolled":
            return x.roll(1, 1) @ w
        if kind == "gathered":
            return x[:, torch.tensor([0, 2, 2, 1])] @ w
        if kind == "masked":
            return torch.where(torch.arange(4) < 2, x, 0) @ w
        return torch.nn.functional.pad(x[:, :2], (1, 1)) @ w

    x, w = torch.randn(5, 4), torch.randn(4, 6)
    with torch.no_grad(), record() as recording:
        torch.testing.assert_close(torch.compile(f, backend="effc")(x, w), f(x, w))
    assert not [entry for graph in recording.graphs for entry in graph.fallbacks]


def test_modules_of_a_closure_whose_parameters_have_one_name() -> None:
    """What is prepared of each (here a sum) is of its own."""
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)

    def function(x: torch.Tensor) -> torch.Tensor:
        return x * first.weight.sum() + second.weight.sum()

    x = torch.randn(3, 6)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(function, backend="effc")(x), function(x))
