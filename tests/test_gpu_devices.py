"""Which device's kernels an op gets: models on CUDA devices that are not there, traced with fake tensors, run by the interpreter."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu_programs import InterpretingGpu, built_on, watched
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import effc
from effc.compiler.capture import backend
from effc.compiler.capture.partition import Group
from effc.compiler.capture.recording import record
from effc.compiler.capture.reference import evaluate
from effc.compiler.gpu import build as gpu_build
from effc.compiler.gpu.build import GpuBuilder, GpuBuilt
from effc.compiler.gpu.choice import AtenOp, Verdict
from effc.compiler.ir.errors import InputError, OptionError, VerificationError
from effc.compiler.ir.options import Options
from effc.compiler.ir.program import Call
from effc.reporting.report import Report
from effc.runtime.gpu.driver import cuda_driver


class Gpus:
    """In the place of ``GpuBuilder``: an interpreting GPU for each device. ``reason``: why none can be used."""

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        self.found: dict[torch.device, InterpretingGpu] = {}
        self.built: list[tuple[torch.device, GpuBuilt]] = []

    def unusable(self, device: torch.device) -> str | None:
        return self.reason

    def build(self, text: str, device: torch.device) -> GpuBuilt:
        gpu = self.found.setdefault(device, InterpretingGpu(str(device)))
        built = built_on(gpu, text)
        self.built.append((device, built))
        return built

    def judged(self, built: GpuBuilt, call: Call, op: AtenOp) -> Verdict:
        return Verdict(1.0, 1.0, False, "no clock")


class Traced:
    """``model`` compiled for inputs and parameters on fake devices; called with real tensors, its regions run in the interpreter.

    ``devices``: of the parameters by name, where it is not the first's of ``inputs``.
    """

    def __init__(
        self, model: nn.Module, inputs: list[tuple[Tensor, str]], gpus: Gpus, *, dynamic: bool = False, **options: Any
    ) -> None:
        self.model, self.gpus = model, gpus
        self.calls: list[Callable[..., Any]] = []
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        moved = copy.deepcopy(model)
        with mode:
            for module in moved.modules():
                for name, parameter in list(module.named_parameters(recurse=False)):
                    device = getattr(module, "device", inputs[0][1])
                    fake = torch.empty_like(parameter, device=device)
                    setattr(module, name, nn.Parameter(fake, requires_grad=False))
            given = [torch.empty_like(x, device=device) for x, device in inputs]
        with record() as self.recording, mode, torch.no_grad():
            torch.compile(moved, backend=self._backend(Options(**options)), dynamic=dynamic, fullgraph=True)(*given)

    def _backend(self, options: Options) -> Callable[..., Any]:
        def compile_graph(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
            compiled = backend.compile_with(gm, example_inputs, options, backend.builder, lambda: self.gpus)
            self.calls.append(compiled)
            self.names = [str(n.target) for n in gm.graph.find_nodes(op="placeholder")]
            return gm.forward  # nobody can run what was compiled on tensors without memory

        return compile_graph

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """``inputs`` in the order in which the graph takes them, where Dynamo puts them between the parameters."""
        (call,) = self.calls
        parameters = {_placeholder(name): p.detach() for name, p in self.model.named_parameters()}
        rest = iter(inputs)
        given = [parameters[name] if name in parameters else next(rest) for name in map(_without_root, self.names)]
        with torch.no_grad():
            results: list[Tensor] = call(*given)
        return results


def _placeholder(parameter: str) -> str:
    """Dynamo's name of ``layer.0.weight``, without that of the model."""
    *modules, name = parameter.split(".")
    return "".join(f"modules_{m}_" for m in modules) + f"parameters_{name}_"


def _without_root(placeholder: str) -> str:
    return re.sub(r"^L_(self|fn)_", "", placeholder)


CUDA, OTHER = torch.device("cuda:0"), torch.device("cuda:1")


def agrees(traced: Traced, *inputs: Tensor) -> None:
    """What the regions compute on real tensors is what the model computes."""
    with watched(traced.gpus.found[CUDA]):
        results = traced(*inputs)
    with torch.no_grad():
        expected = traced.model(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def reasons(traced: Traced) -> dict[str, str]:
    return {f.op: f.reason for g in traced.recording.graphs for f in g.fallbacks}


def test_inputs_on_a_gpu_choose_it() -> None:
    gpus, x = Gpus(), torch.randn(5, 16)
    traced = Traced(nn.Sequential(nn.Linear(16, 8), nn.Softmax(-1)), [(x, "cuda:0")], gpus, fallback="error")
    assert [device for device, _ in gpus.built] == [CUDA]
    agrees(traced, x)


def test_layers_of_one_shape_keep_their_own_parameters() -> None:
    """Dynamo lists the input between the first layer's parameters and the next one's."""
    gpus, x = Gpus(), torch.randn(5, 16)
    nested = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nested, nn.Linear(16, 16, bias=False), nn.LayerNorm(16))
    traced = Traced(model, [(x, "cuda:0")], gpus, fallback="error")
    assert traced.names.index("L_args_0_") == 2 < len(traced.names) - 1
    agrees(traced, x)


@pytest.mark.parametrize("target", [None, "cuda"])
def test_sizes_that_change(target: str | None) -> None:
    gpus, x = Gpus(), torch.randn(5, 16)
    traced = Traced(nn.Linear(16, 8), [(x, "cuda:0")], gpus, dynamic=True, fallback="error", target=target)
    for rows in (5, 1, 33):
        (values,) = _run(traced, torch.randn(rows, 16), symbols=(rows,))
        assert values.shape == (rows, 8)


def _run(traced: Traced, x: Tensor, symbols: tuple[int, ...]) -> list[Tensor]:
    ((_, built),) = traced.gpus.built
    weights = {name: p.detach() for name, p in traced.model.named_parameters()}
    given = [weights[i.param.rpartition(".")[2]] if i.param else x for i in built.executable.program.inputs]
    with watched(traced.gpus.found[CUDA]):
        results = built.executable(symbols, given)
    torch.testing.assert_close(results[0], traced.model(x).detach(), rtol=1e-4, atol=1e-5)
    return results


@pytest.mark.parametrize("convolves", [True, False])
def test_convolutions_follow_torchs_setting_of_tf32(convolves: bool) -> None:
    """By default cudnn rounds where matrix products do not; when the setting changes, Dynamo compiles anew what has convolutions."""
    gpus, built = Gpus(), list[str]()
    model, x = (nn.Conv2d(8, 8, 3), (1, 8, 9, 9)) if convolves else (nn.Linear(9, 8), (5, 9))

    def compile_graph(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        backend.compile_with(gm, example_inputs, Options(fallback="error"), backend.builder, lambda: gpus)
        built.append(next(text for _, text in gpus.found[CUDA].kernels[::-1] if "tt.dot" in text))
        return gm.forward

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        compiled = torch.compile(_faked(model), backend=compile_graph)
        given = torch.empty(x, device="cuda:0")
        for allowed in (True, True, False, True):
            torch.backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"  # type: ignore[attr-defined]  # exact_convolutions puts it back
            compiled(given)
    rounds = ["inputPrecision = 0" in text for text in built]
    assert rounds == ([True, False] if convolves else [False]), "what was compiled once serves again"


def _faked(model: nn.Module) -> nn.Module:
    for name, parameter in list(model.named_parameters()):
        fake = torch.empty_like(parameter, device="cuda:0")
        setattr(model, name, nn.Parameter(fake, requires_grad=False))
    return model


class Both(nn.Module):
    """Something on each device of its inputs, and a copy in between."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.two(x)) + torch.tanh(y.exp().to(x.device))


@pytest.mark.parametrize("other", ["cpu", "cuda:1"])
def test_a_graph_of_two_devices_is_split(other: str) -> None:
    """Each part has kernels for its own device; copies between them are ATen's."""
    gpus = Gpus()
    x, y = torch.randn(3, 12), torch.randn(3, 12)
    traced = Traced(Both(), [(x, "cuda:0"), (y, other)], gpus)
    (graph,) = traced.recording.graphs
    assert len(graph.regions) == 2
    (reason,) = reasons(traced).values()
    assert reason == f"it is on several devices ({', '.join(sorted(('cuda:0', other)))}): ATen moves data between them"
    assert {d for d, _ in gpus.built} == ({CUDA} if other == "cpu" else {CUDA, OTHER})


def test_parts_that_do_not_meet_are_regions_of_their_own() -> None:
    class Apart(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x.exp() * 2, y.sin() + 1

    gpus, x, y = Gpus(), torch.randn(7), torch.randn(9)
    traced = Traced(Apart(), [(x, "cuda:0"), (y, "cpu")], gpus, fallback="error")
    assert [g.regions[0].ops for g in traced.recording.graphs] == [2]
    assert len(traced.recording.graphs[0].regions) == 2
    agrees(traced, x, y)


def test_a_gpu_is_given_its_work_before_the_cpu_computes() -> None:
    """Nobody waits for what is launched."""

    class Apart(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return y.sin() + 1, x.exp() * 2

    gpus, x, y = Gpus(), torch.randn(7), torch.randn(9)
    traced = Traced(Apart(), [(x, "cuda:0"), (y, "cpu")], gpus, fallback="error")
    names = [region.kernels[0].name for region in traced.recording.graphs[0].regions]
    assert ["exp" in name for name in names] == [True, False]
    with watched(gpus.found[CUDA]):
        results = traced(y, x)  # as the graph takes them
    for got, want in zip(results, traced.model(x, y), strict=True):
        torch.testing.assert_close(got, want)


def test_what_is_slower_on_a_cpu_is_compiled_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effc.compiler.capture.graph.faster_in_aten", lambda node: "ATen is faster on a CPU")
    x = torch.randn(5, 16)
    for device, expected in (("cuda:0", set[str]()), ("cpu", {"ATen is faster on a CPU"})):
        traced = Traced(nn.Softmax(-1), [(x, device)], Gpus())
        assert set(reasons(traced).values()) == expected


def test_a_parameter_on_another_device_is_copied_by_aten() -> None:
    class Late(nn.Module):
        device = "cpu"

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 16))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.weight.to(x.device).mT)

    gpus, x = Gpus(), torch.randn(5, 16)
    traced = Traced(Late(), [(x, "cuda:0")], gpus)
    assert [d for d, _ in gpus.built] == [CUDA]
    assert list(reasons(traced).values()) == ["it is on several devices (cpu, cuda:0): ATen moves data between them"]


@pytest.mark.parametrize(
    ("target", "device", "reason"),
    [
        ("cpu", "cuda:0", "it is on cuda:0, and the option target='cpu' compiles for the CPU alone"),
        ("cuda", "cpu", "it is on the CPU, and the option target='cuda' compiles for GPUs alone"),
        (None, "cuda:0", "it is too old"),
    ],
)
def test_what_no_target_serves_goes_to_aten(target: str | None, device: str, reason: str) -> None:
    gpus, x = Gpus("it is too old"), torch.randn(5, 16)
    traced = Traced(nn.Softmax(-1), [(x, device)], gpus, target=target)
    assert not gpus.built
    assert set(reasons(traced).values()) == {reason}


def test_asking_for_a_gpu_that_cannot_be_used_is_an_error() -> None:
    with pytest.raises(Exception, match=r"option 'target' is 'cuda': it is too old; or leave the option out") as caught:
        Traced(nn.Softmax(-1), [(torch.randn(5, 16), "cuda:0")], Gpus("it is too old"), target="cuda")
    assert isinstance(getattr(caught.value, "inner_exception", caught.value), OptionError)


def test_without_triton_or_a_driver_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_build, "triton_reason", lambda: "GPU kernels are compiled by triton 3.3 or newer")
    gpu_build._unusable.cache_clear()
    builder = GpuBuilder({}, None)
    assert builder.unusable(CUDA) == "GPU kernels are compiled by triton 3.3 or newer"
    monkeypatch.setattr(gpu_build, "triton_reason", lambda: None)
    monkeypatch.setenv("EFFC_LIBCUDA", "no_such_library.so")
    cuda_driver.cache_clear()
    gpu_build._unusable.cache_clear()
    assert "no CUDA driver: no_such_library.so cannot be loaded" in (builder.unusable(CUDA) or "")
    monkeypatch.setattr(gpu_build, "cuda_driver", lambda: None)
    monkeypatch.setattr(gpu_build, "capability", lambda device: 75)
    gpu_build._unusable.cache_clear()
    assert builder.unusable(CUDA) == "cuda:0 is an sm_75: effc compiles for sm_80 and newer"
    assert builder.unusable(torch.device("xpu:0")) == "effc compiles for CPUs and for NVIDIA GPUs, not for xpu"
    gpu_build._unusable.cache_clear()
    cuda_driver.cache_clear()


def test_what_is_for_cpus_alone_says_so(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    with FakeTensorMode():
        model[0].weight = nn.Parameter(torch.empty(4, 4, device="cuda"), requires_grad=False)
    with pytest.raises(
        InputError, match=r"effc.save is for models on the CPU, and 0.weight is on cuda:0: call model.cpu\(\)"
    ):
        effc.save(model, torch.randn(2, 4), tmp_path / "saved")


def test_the_report_tells_of_kernels_on_a_gpu() -> None:
    traced = Traced(nn.Linear(16, 8), [(torch.randn(5, 16), "cuda:0")], Gpus())
    report = Report.of(traced.recording, 1.0)
    assert report.ops[0] > 0 == report.ops[1]
    assert "contract+addf" in str(report)


_SDPA = {
    "flash": lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0],
    "efficient": lambda q, k, v: torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, False, 0.0, True)[0],
    "cudnn": lambda q, k, v: torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, False, 0.0, True)[0],
}  # fmt: skip


@pytest.mark.parametrize("name", _SDPA)
def test_what_torch_makes_of_attention_on_a_gpu_is_one_kernel(name: str) -> None:
    class Attends(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if q.device.type == "cpu":  # what is compared with
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)
            found: Tensor = _SDPA[name](q, k, v)
            return found

    gpus = Gpus()
    q, k, v = (torch.randn(2, 3, 17, 16).half() for _ in range(3))
    traced = Traced(Attends(), [(t, "cuda:0") for t in (q, k, v)], gpus, fallback="error")
    ((_, built),) = gpus.built
    assert [kernel.template for kernel in built.executable.program.kernels] == ["attention"]
    with watched(gpus.found[CUDA]):
        (got,) = traced(q, k, v)
    torch.testing.assert_close(got, F.scaled_dot_product_attention(q, k, v, is_causal=True), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", _SDPA)
def test_what_checks_compare_attention_on_a_gpu_with_is_float64(name: str, causal: bool) -> None:
    """torch's kernels take 16 bits, one of them float32: its formula is what they, and effc's, are compared with."""
    op: Any = getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention").default
    graph = torch.fx.Graph()
    q, k, v = (graph.placeholder(n) for n in "qkv")
    rest = (0.0, causal) if name == "flash" else (None, False, 0.0, causal)
    made = graph.call_function(op, (q, k, v, *rest), {"scale": 0.3})
    result = graph.call_function(operator.getitem, (made, 0))
    results = [torch.empty(2, 4, 9, 8).half(), torch.empty(2, 4, 9), *[None] * (len(op._schema.returns) - 2)]
    made.meta["val"], result.meta["val"] = results, results[0]
    given = [torch.randn(2, heads, 9, 8).half() for heads in (4, 2, 2)]
    region: Any = SimpleNamespace(inputs=[q, k, v], outputs=[result], symbols=())
    group = Group([made, result], [q, k, v], [result], {})
    (true,) = evaluate(group, region, (), given, wide=True)
    left, key, value = (t.double() for t in given)
    want = F.scaled_dot_product_attention(left, key, value, is_causal=causal, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(true, want, rtol=1e-12, atol=1e-12)
    (moved,) = evaluate(group, region, (), given, wide=True, noise=torch.Generator().manual_seed(0))
    assert 0 < (moved - true).norm() / true.norm() < 1e-2


def test_attention_that_leaves_something_for_its_gradient_is_atens() -> None:
    class Leaves(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            found = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
            return found[0].exp(), found[1]

    gpus, q = Gpus(), torch.randn(2, 3, 17, 16).half()
    traced = Traced(Leaves(), [(q, "cuda:0")] * 3, gpus)
    assert set(reasons(traced).values()) == {
        "attention whose gradient is taken by a kernel that reads what the forward kernel left"
    }


def test_check_waits_and_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus, x = Gpus(), torch.randn(5, 16)
    traced = Traced(nn.Linear(16, 8), [(x, "cuda:0")], gpus, check=True)
    agrees(traced, x)
    gpu = gpus.found[CUDA]
    assert gpu.waits == 1
    monkeypatch.setattr(gpu, "launch", lambda table, count: None)
    with pytest.raises(VerificationError, match="On a GPU effc does not look for the kernel at fault"):
        agrees(traced, x)
