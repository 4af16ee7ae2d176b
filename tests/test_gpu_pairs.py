"""Two products in one kernel for a GPU: by the interpreter against float64, where they are chosen, and what triton makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gpu_programs
import pytest
import torch
from exactness import assert_exact
from gpu_interpreted import SM80, SM90, Kernel
from gpu_pairs import BETWEEN, LEFT, OUT, PairCase
from gpu_programs import InterpretingGpu, compiled_for_gpu, watched
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from triton_here import needs_triton

from effc.compiler.capture.recording import record
from effc.compiler.codegen.gpu.compile import compile_launch
from effc.compiler.codegen.gpu.emit import emit
from effc.compiler.codegen.gpu.launch import Emitted
from effc.compiler.codegen.gpu.pair.reading import Pair, read_pair
from effc.compiler.codegen.gpu.pair.schedule import apart, candidates, chosen, cost, saved, shared_bytes
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import const
from effc.compiler.ir.spec import Instr, KernelSpec, Schedule

_BOUND = {"f32": 4e-6, "bf16": 1.6e-2, "f16": 2e-3}


def pair_of(case: PairCase) -> Pair:
    found = read_pair(case.spec())
    assert isinstance(found, Pair), found
    return found


def agrees(case: PairCase, schedule: Schedule | None = None, target: GpuTarget = SM80) -> Kernel:
    spec = case.spec() if schedule is None else replace(case.spec(), schedule=schedule)
    kernel, tensors = Kernel(spec, target), case.tensors()
    want = case.expected(tensors)
    assert kernel(tensors) == 0
    bound = _BOUND[case.dtype]
    torch.testing.assert_close(tensors[OUT].double(), want, rtol=bound, atol=bound)
    return kernel


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(
    ("m", "k", "h", "n"), [(2, 3, 2, 2), (17, 33, 5, 65), (16, 64, 16, 64), (40, 130, 31, 257), (129, 17, 33, 15)]
)
@pytest.mark.parametrize("act", ["", "math.tanh"])
def test_against_float64(m: int, k: int, h: int, n: int, dtype: str, act: str) -> None:
    agrees(PairCase(m, k, h, n, dtype, act))


@pytest.mark.parametrize("act", ["", "math.exp"])
def test_every_way_to_cut_it_computes_the_same(act: str) -> None:
    """Columns beyond what lies between, which ``exp`` makes other than zero, are in no sum."""
    held = set()
    for columns in (48, 150):  # of 48, four programs of 16 would leave one without any
        case = PairCase(35, 40, 37, columns, "bf16", act)
        ways: dict[tuple[object, ...], Schedule] = {}
        for schedule in candidates(pair_of(case), SM80, 1000):
            ways.setdefault((schedule["hold"], schedule["parts"], schedule["bh"]), schedule)
        assert {parts for _, parts, _ in ways} >= {1, 2}
        held |= {hold for hold, _, _ in ways}
        for schedule in ways.values():
            agrees(case, schedule)
    assert held == {"hidden", "results"}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("m", "k", "h", "n"), [(17, 33, 37, 65), (40, 64, 130, 64), (3, 17, 5, 250)])
def test_behind_a_norm(m: int, k: int, h: int, n: int, dtype: str) -> None:
    case = PairCase(m, k, h, n, dtype, "math.tanh", norm=True)
    for schedule in {s["hold"]: s for s in candidates(pair_of(case), SM80, 1000)}.values():
        agrees(case, schedule)


def test_columns_beyond_the_rows_of_a_norm_are_in_no_sum() -> None:
    """Here the inverse root of what is masked, zero, is infinite."""
    case = PairCase(5, 33, 20, 40, norm=True)
    spec = case.spec()
    norm = spec.stages[0]
    at = next(i for i, instr in enumerate(norm.body) if instr.op == "store")
    body = (*norm.body[:at], Instr("math.rsqrt", (0,), "f32"), replace(norm.body[at], args=(at,)))
    tensors = case.tensors()
    tensors[0].abs_().add_(0.1)
    x, right, left, bias, skip = (t.double() for t in tensors[:5])
    hidden = x.view(5, 33).rsqrt() @ right.view(20, 33).T
    want = hidden @ left.view(40, 20).T + bias + skip.view(5, 40)
    assert Kernel(replace(spec, stages=(replace(norm, body=body), *spec.stages[1:])))(tensors) == 0
    torch.testing.assert_close(tensors[OUT].view(5, 40).double(), want, rtol=1e-5, atol=1e-5)


def test_infinity_and_nan_stay_in_their_rows() -> None:
    case = PairCase(19, 40, 21, 50)
    tensors = case.tensors()
    tensors[0].view(19, 40)[3, 7] = float("inf")
    tensors[0].view(19, 40)[11, 2] = float("nan")
    want = case.expected(tensors).view(19, 50)
    assert Kernel(case.spec())(tensors) == 0
    got = tensors[OUT].view(19, 50)
    assert torch.equal(got.isfinite(), want.isfinite())
    assert not got[3].isfinite().any()
    assert got[[i for i in range(19) if i not in (3, 11)]].isfinite().all()


def _changed(case: PairCase, **changes: object) -> str:
    """Why no kernel is made of ``case``, the store of whose first stage is changed."""
    spec = case.spec()
    first, second = spec.stages
    (at,) = [i for i, instr in enumerate(first.body) if instr.op == "store"]
    store = replace(first.body[at], attributes=tuple(sorted({**dict(first.body[at].attributes), **changes}.items())))
    body = (*first.body[:at], store, *first.body[at + 1 :])
    found = read_pair(replace(spec, stages=(replace(first, body=body), second)))
    assert isinstance(found, str)
    return found


def test_what_is_no_pair_says_why() -> None:
    case = PairCase(16, 32, 16, 64)
    address = case.spec().stages[0].body[-1]["address"]
    assert (
        _changed(case, address=address + 1) == "between the products other elements are read than are stored at a place"
    )
    assert "results are read at several places" in _changed(case, operand=LEFT + 10)
    with pytest.raises(LoweringError, match="this block is no GPU kernel: it is not of two products"):
        Kernel(replace(case.spec(), stages=case.spec().stages[:1]))
    assert read_pair(replace(case.spec(), stages=case.spec().stages[::-1])) != ""


def test_a_tile_that_no_program_holds_is_refused() -> None:
    case = PairCase(1024, 2048, 2048, 20000, "f16")
    assert chosen(pair_of(case), SM80, Schedule()) is None
    assert saved(pair_of(case), SM80) < 0
    with pytest.raises(LoweringError, match="does not fit a program"):
        Kernel(case.spec())


@pytest.mark.parametrize("target", [SM80, SM90], ids=lambda t: t.key)
def test_where_one_kernel_pays(target: GpuTarget) -> None:
    """Many rows through few columns: yes. A decode step, whose programs would each compute all of the first product: no."""
    prefill, decode = PairCase(8192, 1024, 64, 1024, "f16"), PairCase(4, 4096, 512, 4096, "f16")
    narrow, wide = PairCase(50176, 96, 384, 96, "f16", "math.tanh"), PairCase(8192, 768, 3072, 768, "f16", "math.tanh")
    assert [saved(pair_of(c), target) > 0 for c in (prefill, decode, narrow, wide)] == [True, False, True, False]
    for case in (prefill, narrow):
        best = chosen(pair_of(case), target, Schedule())
        assert best is not None
        assert shared_bytes(pair_of(case), best) <= target.shared_bytes
        assert cost(pair_of(case), target, best) < apart(pair_of(case), target)


@pytest.mark.parametrize("norm", [nn.LayerNorm(48), nn.RMSNorm(48)], ids=["layer", "rms"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_mlp_with_its_norm_is_one_launch(
    norm: nn.Module, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it pays, which so few rows do not."""
    monkeypatch.setattr("effc.compiler.pipeline.gpu_pairs.saved", lambda pair, target: 1.0 + (pair.norm is not None))

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.act, self.down = norm, nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = x + self.down(self.act(self.up(self.norm(x))))
            return found

    torch.manual_seed(0)
    model, gpu, x = Mlp().eval().to(dtype), InterpretingGpu(), torch.randn(2, 35, 48).to(dtype)
    compiled = compiled_for_gpu(model, gpu)
    with torch.no_grad(), watched(gpu):
        assert_exact(model, (x,), compiled)
    assert len(set(gpu.launched)) == 1


class Factored(nn.Module):
    """A layer in two factors, or an MLP."""

    def __init__(self, width: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.right, self.act, self.left = nn.Linear(width, hidden, bias=False), act, nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.left(self.act(self.right(x)))
        return found


@pytest.mark.parametrize("act", [nn.Identity(), nn.GELU()], ids=["factors", "mlp"])
def test_a_model_has_one_launch_for_both(act: nn.Module) -> None:
    torch.manual_seed(0)
    model, gpu, x = Factored(48, 24, act).eval(), InterpretingGpu(), torch.randn(2, 35, 48)
    compiled = compiled_for_gpu(model, gpu)
    with torch.no_grad(), watched(gpu):
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    assert len(gpu.launched) == 1


@pytest.mark.parametrize("convolves", [True, False])
def test_factors_are_rounded_as_torch_says_of_the_op(convolves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To TF32 in convolutions, not in matrix products."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]  # exact_convolutions puts it back
    monkeypatch.setattr("effc.compiler.pipeline.gpu_pairs.saved", lambda pair, target: 1.0)
    layers = (nn.Conv2d(48, 24, 1), nn.Conv2d(24, 48, 1)) if convolves else (nn.Linear(48, 24), nn.Linear(24, 48))
    gpu, x = (
        InterpretingGpu(),
        torch.randn(2, 48, 5, 7).to(memory_format=torch.channels_last) if convolves else torch.randn(70, 48),
    )
    compiled = compiled_for_gpu(nn.Sequential(*layers).eval(), gpu)
    with torch.no_grad(), watched(gpu):
        compiled(x)
    assert len(gpu.launched) == 1
    ((_, text),) = gpu.kernels
    assert (text.count('"tt.dot"'), text.count("inputPrecision = 0")) == (2, 2 if convolves else 0)


def test_what_others_read_too_stays_apart() -> None:
    class Shown(Factored):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            hidden = self.right(x)
            return hidden, self.left(hidden)

    model, gpu, x = Shown(48, 24, nn.Identity()).eval(), InterpretingGpu(), torch.randn(70, 48)
    compiled = compiled_for_gpu(model, gpu)
    with torch.no_grad(), watched(gpu):
        for got, want in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert len(gpu.launched) == 2


@needs_triton
@pytest.mark.parametrize("target", [SM80, SM90], ids=lambda t: t.key)
@pytest.mark.parametrize(
    "case",
    [
        PairCase(8192, 1024, 64, 1024, "f16"),
        PairCase(50176, 96, 384, 96, "f16", "math.tanh"),
        PairCase(50176, 96, 384, 96, "f16", "math.tanh", norm=True),
    ],
    ids=["rank", "mlp", "norm"],
)
def test_both_products_are_of_tensor_cores_and_nothing_spills(case: PairCase, target: GpuTarget) -> None:
    spec = case.spec()
    assert spec.operands[BETWEEN].size == const(0)
    (launch,) = Kernel(spec, target).emitted.launches
    made = compile_launch(launch, target)
    assert (made.frame, ".local" in made.ptx) == (0, False)
    wide = "wgmma.mma_async" if target.has_wgmma else "mma.sync"
    assert made.ptx.count(wide) >= 2


def refused_pairs(patch: pytest.MonkeyPatch) -> None:
    """Pairs pay, and triton takes none."""

    def refuse(spec: KernelSpec, *rest: Any, **more: Any) -> Emitted:
        if spec.template == "block":
            raise LoweringError("triton needs 300000 bytes of shared memory")
        return emit(spec, *rest, **more)

    patch.setattr("effc.compiler.pipeline.gpu_pairs.saved", lambda pair, target: 1.0)
    patch.setattr(gpu_programs, "emit", refuse)


def test_products_whose_pair_is_refused_have_a_kernel_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ATen's; also where only ``effc``'s kernels are asked for."""
    refused_pairs(monkeypatch)
    torch.manual_seed(0)
    model, gpu, x = Factored(48, 24, nn.GELU()).eval(), InterpretingGpu(), torch.randn(2, 35, 48)
    compiled = compiled_for_gpu(model, gpu)
    with record() as recording, torch.no_grad(), watched(gpu):
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    assert len(gpu.launched) == 2
    (note,) = (note for note in recording.notes if "300000 bytes" in note)
    assert note.startswith("products that would share a kernel have one each")


def test_what_is_refused_beside_a_pair_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    refused_pairs(monkeypatch)

    def refuse(spec: KernelSpec, *rest: Any, **more: Any) -> Emitted:
        raise LoweringError(f"no {spec.template}")

    monkeypatch.setattr(gpu_programs, "emit", refuse)
    with pytest.raises(BackendCompilerFailed, match="no contraction"):
        compiled_for_gpu(Factored(48, 24, nn.GELU()).eval(), InterpretingGpu())(torch.randn(2, 35, 48))
