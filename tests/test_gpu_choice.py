"""Which runs a product on a GPU, effc's kernel or ATen's op: by clocks that here say what a test wants, and by a count without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_programs import InterpretingGpu, watched
from stub_cuda import StubCuda
from test_gpu_devices import CUDA, Gpus, Traced, agrees, reasons
from torch import Tensor, nn

from effc.compiler.capture import graph
from effc.compiler.codegen.gpu.rival import Work, counted
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.gpu import alone as gpu_alone
from effc.compiler.gpu import choice as gpu_choice
from effc.compiler.gpu.alone import filled
from effc.compiler.gpu.build import GpuBuilt
from effc.compiler.gpu.choice import AtenOp, Verdict, judged
from effc.compiler.ir.errors import DeviceError
from effc.compiler.ir.program import Call
from effc.runtime.cache import Cache
from effc.runtime.gpu.driver import CudaDriver

SM90 = GpuTarget.named("sm_90")


class Timed(Gpus):
    """GPUs whose clocks show ``seconds``, of effc's kernel and of ATen's op, whatever they do, or raise them. ``timed``: how often."""

    def __init__(self, seconds: list[float] | Exception | None, cache: Cache | None = None) -> None:
        super().__init__()
        self.seconds, self.cache, self.timed = seconds, cache, 0

    def judged(self, built: GpuBuilt, call: Call, op: AtenOp) -> Verdict:
        gpu = self.found[CUDA]
        gpu.elapsed = self._elapsed  # type: ignore[method-assign]
        with watched(gpu):
            return judged(built.executable, call, op, SM90, self.cache)

    def _elapsed(self, calls: Sequence[Callable[[], object]]) -> list[float] | None:
        self.timed += 1
        for call in calls:
            call()  # both run
        if isinstance(self.seconds, Exception):
            raise self.seconds
        return self.seconds


@pytest.fixture(autouse=True)
def _small_products_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """And none is a part of a pair, which ATen has no op for."""
    monkeypatch.setattr("effc.compiler.pipeline.gpu_pairs.saved", lambda pair, target: 0.0)
    monkeypatch.setattr(gpu_choice, "_LEAST", 0.0)
    monkeypatch.setattr(gpu_choice, "_FAR_AHEAD", 1e9)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8)).eval()


def single() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.GELU()).eval()


@pytest.mark.parametrize(("theirs", "aten"), [(1.0, False), (0.96, False), (0.9, True), (5.0, False)])
def test_the_faster_runs_and_the_report_says_why(theirs: float, aten: bool) -> None:
    """ATen's op must save more than 5 %: one more region has its price."""
    gpus, x = Timed([1e-3, theirs * 1e-3]), torch.randn(20, 32)
    traced = Traced(single(), [(x, "cuda:0")], gpus)
    found = reasons(traced)
    assert ("aten.addmm.default" in found) == aten
    if aten:
        assert "ATen is faster: aten.addmm.default of [20, 32] x [32, 32]" in found["aten.addmm.default"]
        assert (
            f"1000.0 µs in effc's kernel, {theirs * 1000:.1f} µs in ATen's op, measured" in found["aten.addmm.default"]
        )
    else:
        assert any("effc's kernel is kept" in note for note in traced.recording.notes)
    agrees(traced, x)


def test_what_is_alike_is_timed_once_and_goes_together() -> None:
    x = torch.randn(20, 32)
    gpus = Timed([1e-3, 1e-3])
    Traced(model(), [(x, "cuda:0")], gpus)
    assert gpus.timed == 2, "the first two are alike"
    gpus = Timed([1e-3, 1e-4])
    traced = Traced(model(), [(x, "cuda:0")], gpus)
    assert gpus.timed == 2
    (found,) = traced.recording.graphs
    assert [f.op for f in found.fallbacks] == ["aten.addmm.default"] * 3


def test_products_are_told_apart_by_what_their_kernels_compute_behind_them() -> None:
    """The first is the op alone, which ATen gains by; the second would need a kernel of its own behind ATen's."""
    x = torch.randn(20, 32)

    class Chosen(Timed):
        def judged(self, built: GpuBuilt, call: Call, op: AtenOp) -> Verdict:
            self.timed += 1
            return Verdict(1e-3, 1e-4 if op.alone else 1e-3, True, "a clock")

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.followed = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.plain(x), self.followed(x).tanh()

    gpus = Chosen(None)
    traced = Traced(Two().eval(), [(x, "cuda:0")], gpus)
    (found,) = traced.recording.graphs
    assert [f.op for f in found.fallbacks] == ["aten.addmm.default"]
    assert sum("effc's kernel is kept" in note for note in traced.recording.notes) == 1


class Residual(nn.Module):
    def __init__(self, layer: nn.Module, more: int) -> None:
        super().__init__()
        self.layer, self.more = layer, more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x)
        for _ in range(self.more):
            found = found + x
        return found


@pytest.mark.parametrize(
    ("module", "shape", "alone"),
    [
        (Residual(nn.Linear(32, 32), 0), (20, 32), True),
        (Residual(nn.Linear(32, 32), 1), (20, 32), False),
        (Residual(nn.Linear(32, 32), 2), (20, 32), False),
        (Residual(nn.Linear(32, 32, bias=False), 0), (20, 32), True),
        (Residual(nn.Linear(32, 32, bias=False), 1), (20, 32), False),
        (nn.Conv2d(16, 16, 3, padding=1), (2, 16, 9, 9), True),
        (nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()), (2, 16, 9, 9), False),
    ],
)
def test_a_kernel_that_computes_more_than_the_op_is_not_it_alone(
    module: nn.Module, shape: tuple[int, ...], alone: bool
) -> None:
    found: list[bool] = []

    class Seen(Timed):
        def judged(self, built: GpuBuilt, call: Call, op: AtenOp) -> Verdict:
            found.append(op.alone)
            return Verdict(1e-3, 1e-3, True, "a clock")

    Traced(module.eval(), [(torch.randn(shape), "cuda:0")], Seen(None))
    assert found == [alone]


def test_a_measurement_is_kept(tmp_path: Path) -> None:
    x, cache = torch.randn(20, 32), Cache(tmp_path)
    for expected in (2, 0):
        gpus = Timed([1e-3, 1e-3], cache)
        Traced(model(), [(x, "cuda:0")], gpus)
        assert gpus.timed == expected
    other = Timed([1e-3, 1e-3], cache)
    Traced(model(), [(torch.randn(21, 32), "cuda:0")], other)
    assert other.timed == 2, "another shape"


@pytest.mark.parametrize("theirs", [1e-4, 1e-3])
def test_sizes_that_change_are_timed_as_the_first_call_has_them(theirs: float, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for rows, timed in ((20, 1), (20, 0), (33, 1)):
        gpus = Timed([1e-3, theirs], cache)
        traced = Traced(nn.Linear(16, 8), [(torch.randn(rows, 16), "cuda:0")], gpus, dynamic=True)
        assert gpus.timed == timed
        (told,) = [*reasons(traced).values(), *(n for n in traced.recording.notes if "µs" in n)]
        assert f"aten.addmm.default of [{rows}, 16] x [16, 8], the first call's sizes, at" in told
        assert told.startswith("ATen is faster" if theirs < 1e-3 else "effc's kernel is kept")


def added(mask: Tensor) -> Tensor:
    """To scores, of a mask that is true where something is seen."""
    return torch.where(mask, 0.0, -torch.inf)


class Attends(nn.Module):
    """As ``scaled_dot_product_attention`` becomes on a GPU, of which this process has no kernels."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        op = torch.ops.aten._scaled_dot_product_efficient_attention
        bias = None if mask is None else added(mask).expand(2, 3, 16, 24)
        found: Tensor = op(q, k, v, bias, False, 0.0, True)[0]
        return found * 2


class WritesOut(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = q @ k.mT / 4
        scores = scores if mask is None else scores + added(mask)
        return scores.softmax(-1) @ v * 2


@pytest.mark.parametrize("theirs", [5e-4, 1e-3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("model", [Attends(), WritesOut()], ids=["op", "written out"])
def test_attention_is_timed_too(model: nn.Module, masked: bool, theirs: float, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus, q = Timed([1e-3, theirs]), torch.randn(2, 3, 16, 16)
    k, v, mask = torch.randn(2, 3, 24, 16), torch.randn(2, 3, 24, 16), torch.rand(16, 24) < 0.8

    def ours_alone(calls: Sequence[Callable[[], object]]) -> list[float]:
        gpus.timed += 1
        calls[0]()
        return [1e-3, theirs]

    monkeypatch.setattr(gpus, "_elapsed", ours_alone)
    traced = Traced(model, [(x, "cuda:0") for x in (q, k, v, *[mask][:masked])], gpus)
    assert gpus.timed == 1
    told = [*reasons(traced).values(), *traced.recording.notes]
    name = "_scaled_dot_product_efficient_attention" if isinstance(model, Attends) else "effc.attention"
    assert any(name in t and "of [2, 3, 16, 16] x [2, 3, 24, 16]" in t for t in told), told
    assert any(name in op for op in reasons(traced)) == (theirs < 9e-4)


def test_a_formula_of_attention_is_counted_with_its_scores() -> None:
    """Where it cannot be timed, as it needs too much memory, it must not be taken for one kernel."""
    seen: list[AtenOp] = []

    class Seen(Timed):
        def judged(self, built: GpuBuilt, call: Call, op: AtenOp) -> Verdict:
            seen.append(op)
            return Verdict(1e-3, 1e-3, True, "a clock")

    q, k = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 24, 16)
    Traced(WritesOut(), [(x, "cuda:0") for x in (q, k, k.clone())], Seen(None))
    assert [op.between for op in seen] == [2 * 2 * 3 * 16 * 24 * 4]
    heads, length, head = 32, 8192, 128
    work = Work(4.0 * heads * length**2 * head, 8.0 * heads * length * head, 4.0 * heads * length**2, "f16")
    ours, theirs = counted(work, SM90)
    assert theirs > 2 * ours


def test_whoever_refuses_fallbacks_gets_effcs_kernels() -> None:
    gpus, x = Timed([1e-3, 1e-6]), torch.randn(20, 32)
    traced = Traced(single(), [(x, "cuda:0")], gpus, fallback="error")
    assert gpus.timed == 0
    agrees(traced, x)


def test_convolutions_are_products_too() -> None:
    gpus, x = Timed([1e-3, 1e-4]), torch.randn(1, 16, 9, 9)
    traced = Traced(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()).eval(), [(x, "cuda:0")], gpus)
    assert gpus.timed == 1
    assert set(reasons(traced)) == {"aten.convolution.default"}
    agrees(traced, x)


class Coded(nn.Module):
    """A linear of int8 codes: ATen would write the weight into memory at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randint(-127, 128, (40, 48), dtype=torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.codes.to(x.dtype) * 0.01)


def test_codes_are_effcs() -> None:
    gpus = Timed([1e-3, 1e-6])
    Traced(Coded(), [(torch.randn(20, 48), "cuda:0")], gpus)
    assert gpus.timed == 0


def test_where_nothing_can_be_timed_the_count_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(20, 32)
    for counts, aten in (((1e-3, 1e-4), True), ((1e-4, 1e-3), False)):
        monkeypatch.setattr(gpu_choice, "counted", lambda work, target, counts=counts: counts)
        traced = Traced(model(), [(x, "cuda:0")], Timed(None))
        assert bool(reasons(traced)) == aten
        assert not aten or "counted for an interpreter" in reasons(traced)["aten.addmm.default"]


def test_too_little_memory_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu_alone, "filled", full)
    traced = Traced(model(), [(torch.randn(20, 32), "cuda:0")], Timed([1e-3, 1e-6]))
    assert not any("measured" in note for note in traced.recording.notes)


@pytest.mark.parametrize("error", [RuntimeError("CUDNN_STATUS_NOT_SUPPORTED"), DeviceError("no launch")], ids=str)
def test_what_cannot_run_is_not_timed(error: Exception) -> None:
    x, gpus = torch.randn(20, 32), Timed(error)
    traced = Traced(single(), [(x, "cuda:0")], gpus)
    assert gpus.timed == 1
    assert not any("measured" in note for note in traced.recording.notes)
    agrees(traced, x)


def test_while_a_graph_is_captured_no_operands_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be allocated, and filled at each replay; what was timed before counts."""
    made: list[object] = []
    monkeypatch.setattr(gpu_alone, "filled", lambda *given: made.append(given))
    monkeypatch.setattr(InterpretingGpu, "is_capturing", lambda self: True)
    gpus = Timed([1e-3, 1e-6])
    traced = Traced(model(), [(torch.randn(20, 32), "cuda:0")], gpus)
    assert (made, gpus.timed) == ([], 0)
    assert not any("measured" in note for note in traced.recording.notes)


def test_timing_leaves_the_users_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    first, second = (filled(InterpretingGpu(), (64,), (1,), torch.float32) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second), "and do not depend on them"


def test_what_loses_is_given_up_at_once_and_what_stays_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four products, none like another, the second and the third lose."""
    x = torch.randn(20, 32)
    layers = [
        nn.Linear(32, 33),
        nn.Tanh(),
        nn.Linear(33, 34),
        nn.Tanh(),
        nn.Linear(34, 35),
        nn.Tanh(),
        nn.Linear(35, 7),
    ]

    class Chosen(Timed):
        def judged(self, built: GpuBuilt, call: Call, op: AtenOp) -> Verdict:
            loses = "('33', '34')" in op.key or "('34', '35')" in op.key
            return Verdict(1e-3, 1e-4 if loses else 1e-3, True, "a clock")

    divisions: list[None] = []
    divide = vars(graph)["partition"]

    def counted(*given: Any) -> Any:
        divisions.append(None)
        return divide(*given)

    monkeypatch.setattr(graph, "partition", counted)
    traced = Traced(nn.Sequential(*layers).eval(), [(x, "cuda:0")], Chosen(None))
    assert len(divisions) == 2
    kept = [note for note in traced.recording.notes if "is kept" in note]
    assert [("[20, 32] x [32, 33]" in note, "[20, 35] x [35, 7]" in note) for note in kept] == [
        (True, False),
        (False, True),
    ]
    (found,) = traced.recording.graphs
    assert [f.op for f in found.fallbacks] == ["aten.addmm.default"] * 2


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x).relu()


@pytest.mark.parametrize(
    ("module", "shape", "told"),
    [
        (Square(), (16, 16), "mm.default of [16, 16] x [16, 16] at"),
        (nn.Conv2d(8, 16, 3), (2, 8, 9, 9), "convolution.default of [2, 8, 9, 9] x [16, 8, 3, 3] at"),
        (nn.Linear(16, 8), (20, 16), "addmm.default of [20, 16] x [16, 8] at"),
    ],
    ids=["square", "convolution", "linear"],
)
def test_the_report_names_the_factors(module: nn.Module, shape: tuple[int, ...], told: str) -> None:
    traced = Traced(module.eval(), [(torch.randn(shape), "cuda:0")], Timed([1e-3, 1e-3]))
    assert any(told in note for note in traced.recording.notes), traced.recording.notes


def test_far_ahead_or_too_small_to_matter_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(20, 32)
    for name, value in (("_FAR_AHEAD", 0.0), ("_LEAST", 1.0)):
        with monkeypatch.context() as patch:
            patch.setattr(gpu_choice, name, value)
            gpus = Timed([1e-3, 1e-6])
            Traced(model(), [(x, "cuda:0")], gpus)
            assert gpus.timed == 0


def test_memory_to_time_with_is_laid_out_as_the_models() -> None:
    made = filled(InterpretingGpu(), (3, 4, 5), (0, 1, 4), torch.float16)
    assert (made.shape, made.stride()) == ((3, 4, 5), (0, 1, 4))
    assert made.std() > 0.1


def test_the_driver_tells_its_version() -> None:
    assert CudaDriver(StubCuda()).version() == "12.8"
