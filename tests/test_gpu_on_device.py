"""What runs on a CUDA device, for who has one: every kernel and whole models held to effc's definition of exact, streams, graphs, devices.

    python -P -m pytest tests/test_gpu_on_device.py

No such device has been at hand so far: what the interpreter cannot show (synchronisation in a kernel, the driver's own behaviour) is
first seen here.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from contraction_cases import Case
from exactness import assert_exact
from gpu_cases import CASES, GpuCase
from gpu_interpreted import operands_of, roles_of, sized
from gpu_reference import assert_as_float64, assert_same
from sparse_cases import pruned, sparsity, with_sparsity
from test_gpu_models import Block, Lookup, Nibbles, Quantized, Residual, made
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import effc
from effc.compiler.codegen.gpu.contraction.schedule import candidates
from effc.compiler.codegen.gpu.sparse.choice import derivations, schedules, sparse_spec
from effc.compiler.codegen.gpu.sparse.form import Form, find
from effc.compiler.gpu.build import GpuBuilder, target_of
from effc.compiler.ir.spec import KernelSpec, Schedule
from effc.runtime.derive import derive
from effc.runtime.gpu.code import SpecCode
from effc.runtime.gpu.single import single
from effc.runtime.nibbles import pack_nibbles

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def on_gpu(model: Callable[..., Any], *, dynamic: bool = False, **options: Any) -> Callable[..., Any]:
    """``model`` compiled on the first device, to be called with tensors on the CPU; what it writes into those is written back."""
    moved = copy.deepcopy(model).cuda() if isinstance(model, nn.Module) else model
    compiled = torch.compile(moved, backend="effc", dynamic=dynamic, options={"fallback": "error", **options})

    def call(*inputs: Any) -> Any:
        given = pytree.tree_map_only(Tensor, lambda t: t.cuda(), inputs)
        results = compiled(*given)
        for before, after in zip(pytree.tree_leaves(inputs), pytree.tree_leaves(given), strict=True):
            if isinstance(before, Tensor):
                before.copy_(after)
        return pytree.tree_map_only(Tensor, lambda t: t.cpu(), results)

    return call


def exact(model: nn.Module, *inputs: Any, dynamic: bool = False) -> None:
    with torch.no_grad():
        assert_exact(model, inputs, on_gpu(model, dynamic=dynamic))


# -- kernels ----------------------------------------------------------------------------------------------------------


DEVICE = torch.device("cuda:0")


@functools.cache
def compiled_cases() -> dict[KernelSpec, SpecCode]:
    """All kernels of `CASES`, compiled at once: that takes the GPU's machine a fraction of the time."""
    return compiled([sized(spec) for case in CASES for spec in (case.small, case.spec)])


def compiled(specs: Sequence[KernelSpec]) -> dict[KernelSpec, SpecCode]:
    return dict(zip(specs, GpuBuilder({}, None).kernels(specs, DEVICE), strict=True))


def run(spec: KernelSpec, code: SpecCode, tensors: list[Tensor]) -> list[Tensor]:
    """What a kernel writes, in the host's memory; ``tensors``: all other operands."""
    builder = GpuBuilder({}, None)
    return [
        t.cpu()
        for t in single(spec, code, builder.device(DEVICE), builder.unchanged())((), [t.cuda() for t in tensors])
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernels_give_what_float64_gives(case: GpuCase) -> None:
    """At small sizes, borders included, and at those for which the schedules are chosen."""
    for spec in map(sized, (case.small, case.spec)):
        tensors = operands_of(spec)
        written = [i for i, o in enumerate(spec.operands) if o.role == "write"]
        packed = {i for i, o in enumerate(spec.operands) if o.role == "packed"}
        given = [pack_nibbles(t, 0, t.numel()) if i in packed else t for i, t in enumerate(tensors) if i not in written]
        results = run(spec, compiled_cases()[spec], given)
        assert_as_float64(spec, tensors, dict(zip(written, results, strict=True)))


@pytest.mark.parametrize("sizes", [(1500, 3000, 2048), (1500, 3001, 2047), (16, 3000, 8192)], ids=str)
def test_every_tiling_of_a_product(sizes: tuple[int, int, int]) -> None:
    """With pointers and descriptors, tile after tile, in parts of the sum, a last wave in parts; the same bits twice."""
    m, n, k = sizes
    spec = sized(Case(sizes, 1, (k, 0, 1), (0, k, 1), (n, 1, 0), "f16", "f32", (0, 1, 0), True).spec())
    target = target_of(GpuBuilder({}, None).device(DEVICE))
    kinds = dict[tuple[Any, ...], Schedule]()
    for schedule in candidates(roles_of(spec), target, 1000):
        kinds.setdefault(tuple(schedule[name] for name in ("split", "descriptors", "persistent", "tail")), schedule)
    x, w, bias = torch.randn(m, k).half(), torch.randn(n, k).half(), torch.randn(n)
    want = (x.cuda().double() @ w.cuda().double().T + bias.cuda()).relu().cpu().flatten()
    for tiled, code in compiled([replace(spec, schedule=schedule) for schedule in kinds.values()]).items():
        first, again = (run(tiled, code, [x.flatten(), w.flatten(), bias])[0] for _ in range(2))
        assert_same(first, want)
        assert torch.equal(first, again)


@pytest.mark.parametrize("pattern", [(1, 1), (16, 1), (1, 16), (32, 32)], ids=str)
def test_products_that_leave_out_zeros(pattern: tuple[int, int]) -> None:
    m, n, k = 19, 300, 500
    weight = pruned(n, k, *pattern, 0.4).half()
    dense = sized(Case((m, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1, 0), "f16", "f32").spec())
    form = find(with_sparsity(dense, sparsity(weight, *pattern)))
    assert isinstance(form, Form), form
    lists = [derive(name, weight, given).flatten() for name, given in derivations(form)]
    x = torch.randn(m, k).half()
    for schedule in {s["sparse"]: s for s in schedules(form)}.values():
        spec = sparse_spec(form.spec, schedule, form.weight)
        (got,) = run(spec, compiled([spec])[spec], [x.flatten(), *lists])
        assert_same(got, (x.double() @ weight.double().T).flatten())


# -- models -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_transformers_block(dtype: torch.dtype) -> None:
    exact(made(lambda: Block(256, 8, 2, 512), dtype), torch.randn(2, 131, 256).to(dtype))


def test_a_decode_step() -> None:
    keys, values = (torch.randn(2, 2, 640, 64).bfloat16() for _ in range(2))
    exact(made(lambda: Block(512, 8, 2, 512), torch.bfloat16), torch.randn(2, 1, 512).bfloat16(), keys, values, 600)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_residual_block_of_convolutions(dtype: torch.dtype) -> None:
    exact(made(lambda: Residual(64), dtype), torch.randn(2, 64, 29, 31).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 16, 100])
@pytest.mark.parametrize("build", [Quantized, Nibbles])
def test_weights_that_are_codes(build: Callable[[torch.dtype], nn.Module], rows: int, dtype: torch.dtype) -> None:
    exact(build(dtype), torch.randn(rows, 48 if build is Quantized else 96).to(dtype))


def test_sizes_that_change() -> None:
    model = made(Block)
    compiled = on_gpu(model, dynamic=True)
    with torch.no_grad():
        for batch, length in ((2, 7), (3, 200), (1, 33)):
            assert_exact(model, (torch.randn(batch, length, 64),), compiled)


def test_inference_mode_and_training_run() -> None:
    model, x = made(lambda: nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 8))), torch.randn(20, 48)
    with torch.inference_mode():
        torch.testing.assert_close(on_gpu(model)(x), model(x), rtol=1e-4, atol=1e-5)
    moved = copy.deepcopy(model).cuda()
    compiled = torch.compile(moved, backend="effc")
    compiled(x.cuda()).square().sum().backward()
    model(x).square().sum().backward()
    for ours, eager in zip(moved.parameters(), model.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad.cpu(), eager.grad, rtol=1e-3, atol=1e-4)


# -- devices, streams and graphs --------------------------------------------------------------------------------------
def test_inputs_at_odd_addresses_and_of_other_strides() -> None:
    model = made(lambda: nn.Linear(16, 8))
    compiled, memory = torch.compile(copy.deepcopy(model).cuda(), backend="effc"), torch.randn(16 * 20 + 1)
    moved = memory.cuda()
    with torch.no_grad():
        for start, strides in ((1, (16, 1)), (0, (1, 20)), (0, (16, 1))):
            here, there = (m.as_strided((20, 16), strides, start) for m in (memory, moved))
            torch.testing.assert_close(compiled(there).cpu(), model(here), rtol=1e-4, atol=1e-5)


def test_kernels_run_on_the_current_stream() -> None:
    model = made(lambda: nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)))
    compiled, stream = torch.compile(copy.deepcopy(model).cuda(), backend="effc"), torch.cuda.Stream()
    x = torch.randn(64, 512)
    with torch.no_grad():
        compiled(x.cuda())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # what does not wait for this stream sees the old values
            y = compiled((x.cuda() * 2).relu())
        stream.synchronize()
        torch.testing.assert_close(y.cpu(), model((x * 2).relu()), rtol=1e-4, atol=1e-4)


def test_a_thread_that_has_asked_cuda_for_nothing_runs_kernels() -> None:
    model, x = made(lambda: nn.Linear(64, 32)), torch.randn(5, 64)
    compiled, given, results = torch.compile(copy.deepcopy(model).cuda(), backend="effc"), x.cuda(), list[Tensor]()

    def call() -> None:
        with torch.no_grad():
            results.append(compiled(given))

    call()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert len(results) == 2
    for result in results:
        torch.testing.assert_close(result.cpu(), model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [Block, Lookup])
def test_a_call_is_captured_into_a_cuda_graph(build: Callable[[], nn.Module]) -> None:
    """Also where indices are checked."""
    model = made(build)
    given = [torch.randint(0, 11, (3, 5)) if build is Lookup else torch.randn(2, 19, 64) for _ in range(2)]
    compiled, x = torch.compile(copy.deepcopy(model).cuda(), backend="effc"), given[0].cuda()
    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(2):
                compiled(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = compiled(x)
        for inputs in given:
            x.copy_(inputs)
            graph.replay()
            torch.testing.assert_close(y.cpu(), model(inputs), rtol=1e-4, atol=1e-4)


def test_an_index_out_of_range_is_raised_by_a_later_call() -> None:
    compiled = torch.compile(made(Lookup).cuda(), backend="effc")
    tokens = torch.full((3, 5), 11, device="cuda")
    with torch.no_grad():
        compiled(tokens)
        torch.cuda.synchronize()
        with pytest.raises(IndexError, match="in an earlier call on cuda:0"):
            compiled(tokens.zero_())


def test_tf32_is_used_where_torch_allows_it() -> None:
    model, x = nn.Linear(1024, 512).cuda(), torch.randn(256, 1024, device="cuda")
    with torch.no_grad():
        true = nn.functional.linear(x.double(), model.weight.double(), model.bias.double())

        def error() -> float:
            result = torch.compile(model, backend="effc")(x)
            return float((result.double() - true).norm() / true.norm())

        exactly = error()
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch._dynamo.reset()
        assert exactly < 1e-6 < error() < 2e-3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_one_model_on_two_devices() -> None:
    model, x = made(lambda: nn.Sequential(nn.Linear(64, 64), nn.GELU())), torch.randn(5, 64)
    for device in ("cuda:1", "cuda:0"):
        compiled = torch.compile(copy.deepcopy(model).to(device), backend="effc", options={"fallback": "error"})
        with torch.no_grad():
            result = compiled(x.to(device))
        assert str(result.device) == device
        torch.testing.assert_close(result.cpu(), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_large_products_are_timed_against_atens() -> None:
    """Whichever wins, the report says by what times, and the result is the model's."""
    model, x = nn.Linear(4096, 4096).cuda().half(), torch.randn(4096, 4096, device="cuda").half()
    with torch.no_grad():
        report = effc.explain(model, x)
        found = [*report.notes, *(f.reason for g in report.graphs for f in g.fallbacks)]
        assert any("µs in effc's kernel" in text and "measured for" in text for text in found)
        torch.testing.assert_close(torch.compile(model, backend="effc")(x), model(x), rtol=1e-2, atol=1e-2)


def test_bench_times_by_events() -> None:
    from effc.bench.places import OnCuda

    module, (x,) = OnCuda().placed(nn.Linear(4096, 4096), (torch.randn(4096, 4096),))
    assert OnCuda().seconds(lambda: module(x), 20) > 0
    assert torch.cuda.current_stream().query(), "all calls have ended"
    assert OnCuda().peak_memory() >= 3 * 4 * 4096**2
