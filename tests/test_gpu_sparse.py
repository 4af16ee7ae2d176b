"""Products with sparse matrices on a GPU: lists of blocks, kernels that go through them by the interpreter against float64, the choice."""

from __future__ import annotations

import pytest
import torch
from contraction_cases import Case
from gpu_interpreted import SM80, SM90, Kernel
from gpu_programs import InterpretingGpu, compiled_for_gpu, watched
from sparse_cases import pruned, sparsity, with_sparsity
from test_contraction_conv import conv_case
from torch import Tensor
from torch.nn import functional as F
from triton_here import needs_triton

from effc.compiler.codegen.gpu.compile import compile_launch
from effc.compiler.codegen.gpu.sparse.choice import chosen, derivations, schedules, sparse_spec
from effc.compiler.codegen.gpu.sparse.form import Form, find
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import InputError
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.ir.spec import KernelSpec, Schedule
from effc.runtime.derive import derive
from effc.runtime.dtypes import TORCH_DTYPES


def linear(m: int, weight: torch.Tensor, known: Sparsity, dtype: str, *, planes: bool = False) -> KernelSpec:
    """``relu(x @ weight.T + bias)``, the result in f32; ``planes``: ``x`` is ``[k][m]`` in memory."""
    n, k = weight.shape
    case = Case((m, n, k), 1, (1, 0, m) if planes else (k, 0, 1), (0, k, 1), (n, 1, 0), dtype, "f32", (0, 1, 0), True)
    return with_sparsity(case.spec(), known)


def form_of(spec: KernelSpec) -> Form:
    found = find(spec)
    assert isinstance(found, Form), found
    return found


def run(spec: KernelSpec, schedule: Schedule, tensors: list[torch.Tensor], weight: int = 1) -> None:
    """The kernel of ``spec`` on dense ``tensors``, of which that of the matrix is packed."""
    packed = [derive(name, tensors[weight], attributes).flatten() for name, attributes in derivations(form_of(spec))]
    given = [packed[0] if i == weight else t for i, t in enumerate(tensors)]
    assert Kernel(sparse_spec(spec, schedule, weight))([*given, *packed[1:]]) == 0


_PATTERNS = [(1, 1), (16, 1), (1, 16), (4, 4), (8, 8), (16, 16), (32, 1), (32, 32), (64, 8)]


@pytest.mark.parametrize(
    ("pattern", "planes", "dtype"),
    [
        *((pattern, bool(i % 2), "f32") for i, pattern in enumerate(_PATTERNS)),
        *(
            (pattern, planes, dtype)
            for pattern, planes in (((16, 1), True), ((32, 32), False))
            for dtype in ("bf16", "f16")
        ),
        ((1, 16), False, "bf16"),
    ],
    ids=str,
)
def test_every_schedule_against_float64(pattern: tuple[int, int], planes: bool, dtype: str) -> None:
    m, n, k = 19, 77, 90
    weight = pruned(n, k, *pattern, 0.4).to(TORCH_DTYPES[dtype])
    weight[:2] = 0  # rows that store nothing
    spec = linear(m, weight, sparsity(weight, *pattern), dtype, planes=planes)
    x, bias = torch.randn(m, k).to(weight.dtype), torch.randn(n)
    want = F.relu(x.double() @ weight.double().T + bias.double())
    given = x.T.contiguous() if planes else x
    some = {(s["sparse"], s["bk"]): s for s in schedules(form_of(spec))}
    assert {method for method, _ in some} == ({"rows", "tiles"} if pattern[0] >= 16 else {"rows"})
    for schedule in some.values():
        y = torch.full((m * n,), float("nan"))
        run(spec, schedule, [given.flatten(), weight.flatten(), bias, y])
        torch.testing.assert_close(y.view(m, n).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pattern", [(16, 1), (16, 4), (1, 1)], ids=str)
def test_sums_of_several_dims(pattern: tuple[int, int]) -> None:
    """A convolution's, over channels and a window."""
    weight = pruned(20, 108, *pattern, 0.4)
    spec = with_sparsity(conv_case(2, 12, 20, (7, 6), (3, 3)).spec(), sparsity(weight, *pattern))
    x, bias = torch.randn(2, 7, 6, 12), torch.randn(20)
    want = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.view(20, 12, 3, 3).double(), bias.double()).relu()
    for schedule in {s["sparse"]: s for s in schedules(form_of(spec))}.values():
        y = torch.full((2 * 5 * 4 * 20,), float("nan"))
        run(spec, schedule, [x.flatten(), weight.flatten(), bias, y])
        torch.testing.assert_close(y.view(2, 5, 4, 20).permute(0, 3, 1, 2).double(), want, rtol=1e-5, atol=1e-5)


def test_more_room_than_blocks_and_none_at_all() -> None:
    weight = torch.zeros(32, 48)
    known = Sparsity(16, 1, 7)
    spec = linear(5, weight, known, "f32")
    x, bias = torch.randn(5, 48), torch.randn(32)
    for schedule in schedules(form_of(spec))[:3]:
        y = torch.full((160,), float("nan"))
        run(spec, schedule, [x.flatten(), weight.flatten(), bias, y])
        assert torch.equal(y.view(5, 32), F.relu(bias).expand(5, 32))
    weight[:, :4] = 1.0
    with pytest.raises(InputError, match="has 8 blocks of 16 x 1 elements that are not zero, and had 7 when"):
        run(spec, schedules(form_of(spec))[0], [x.flatten(), weight.flatten(), bias, torch.empty(160)])


def test_lists_hold_the_matrix() -> None:
    weight = pruned(45, 70, 16, 8, 0.5)
    known = sparsity(weight, 16, 8)
    spec = linear(3, weight, known, "f32")
    elements, places, starts = (derive(name, weight, given) for name, given in derivations(form_of(spec)))
    made = torch.zeros(48, 72)
    for row in range(3):
        for block in range(int(starts[row]), int(starts[row + 1])):
            made[16 * row : 16 * row + 16, places[block] : places[block] + 8] = elements[block].T
    assert torch.equal(made[:45, :70], weight)
    assert int(starts[-1]) == known.stored


def _chosen(m: int, n: int, k: int, pattern: tuple[int, int], density: float, target: GpuTarget = SM80) -> str | None:
    weight = torch.zeros(n, k)
    stored = round(n * k * density / (pattern[0] * pattern[1]))
    schedule = chosen(linear(m, weight, Sparsity(*pattern, stored), "f16"), target)
    return None if schedule is None else str(schedule["sparse"])


@pytest.mark.parametrize("target", [SM80, SM90], ids=lambda t: t.key)
def test_where_leaving_out_zeros_pays(target: GpuTarget) -> None:
    """A decode step reads fewer bytes; many rows gain where blocks are large enough for tensor cores, and few."""
    assert _chosen(1, 4096, 4096, (16, 1), 0.3, target) == "rows"
    assert _chosen(1, 4096, 4096, (1, 1), 0.1, target) == "rows"
    assert _chosen(1, 4096, 4096, (1, 1), 0.5, target) is None
    assert _chosen(1, 4096, 4096, (16, 16), 0.9, target) is None
    assert _chosen(2048, 4096, 4096, (1, 16), 0.1, target) is None
    assert _chosen(2048, 4096, 4096, (1, 1), 0.1, target) is None
    assert _chosen(2048, 4096, 4096, (128, 32), 0.1, target) == "tiles"


def test_more_elements_than_32_bits_number_stay_dense() -> None:
    weight = torch.empty(1 << 17, 1 << 17, device="meta")
    for stored, taken in (((1 << 31) // 16 - 1, True), ((1 << 31) // 16, False)):
        found = chosen(linear(1, weight, Sparsity(16, 1, stored), "f16"), SM80)
        assert (found is not None) == taken


def test_two_of_four_and_other_groups_stay_dense() -> None:
    weight = torch.zeros(4096, 4096)
    assert chosen(linear(1, weight, Sparsity.of_each(2, 4, weight.numel()), "f16"), SM80) is None


@pytest.mark.parametrize(("layer", "shape"), [
    (torch.nn.Linear(128, 64), (1, 128)),
    (torch.nn.Linear(128, 64), (3, 11, 128)),
    (torch.nn.Conv2d(48, 32, 1), (2, 48, 5, 7)),
    (torch.nn.Conv2d(24, 32, 3, padding=1, stride=2), (2, 24, 9, 8)),
], ids=["row", "rows", "1x1", "window"])  # fmt: skip
def test_models_whose_weights_have_zeros(
    layer: torch.nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effc.compiler.codegen.gpu.sparse.choice.MARGIN", 1e9)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    with torch.no_grad():
        weight.copy_(pruned(weight.shape[0], weight[0].numel(), 16, 1, 0.25).view_as(weight))
    model, gpu, x = torch.nn.Sequential(layer, torch.nn.ReLU()).eval(), InterpretingGpu(), torch.randn(shape)
    compiled = compiled_for_gpu(model, gpu, passes={"sparsity": {"pattern": "existing"}})
    with torch.no_grad(), watched(gpu):
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    # of places, starts and the error cell
    assert any(text.splitlines()[2].count("!tt.ptr<i32>") == 3 for _, text in gpu.kernels)


@pytest.mark.parametrize("convolves", [True, False])
def test_factors_are_rounded_as_torch_says_of_the_op(convolves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To TF32 in convolutions, not in matrix products."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]  # exact_convolutions puts it back
    monkeypatch.setattr("effc.compiler.codegen.gpu.sparse.choice.MARGIN", 1e9)
    monkeypatch.setattr(
        "effc.compiler.codegen.gpu.sparse.choice.cost", lambda form, target, s: 1.0 + (s["sparse"] == "rows")
    )
    layer = torch.nn.Conv2d(32, 32, 1) if convolves else torch.nn.Linear(32, 32)
    with torch.no_grad():
        layer.weight.copy_(pruned(32, 32, 16, 1, 0.25).view_as(layer.weight))
    gpu, x = InterpretingGpu(), torch.randn(2, 32, 5, 7) if convolves else torch.randn(70, 32)
    compiled = compiled_for_gpu(torch.nn.Sequential(layer).eval(), gpu, passes={"sparsity": {"pattern": "existing"}})
    with torch.no_grad(), watched(gpu):
        compiled(x)
    (text,) = (text for _, text in gpu.kernels if '"tt.dot"' in text)
    assert ("inputPrecision = 0" in text) == convolves


@needs_triton
@pytest.mark.parametrize("target", [SM80, SM90], ids=lambda t: t.key)
@pytest.mark.parametrize(
    ("m", "pattern", "method"), [(1, (16, 1), "rows"), (1, (1, 1), "rows"), (2048, (128, 32), "tiles")], ids=str
)
def test_what_triton_makes_of_them(m: int, pattern: tuple[int, int], method: str, target: GpuTarget) -> None:
    weight = torch.zeros(4096, 4096)
    stored = round(weight.numel() * 0.1 / (pattern[0] * pattern[1]))
    spec = linear(m, weight, Sparsity(*pattern, stored), "f16")
    schedule = chosen(spec, target)
    assert schedule is not None
    assert schedule["sparse"] == method
    (launch,) = Kernel(sparse_spec(spec, schedule, 1), target).emitted.launches
    made = compile_launch(launch, target)
    assert (made.frame, ".local" in made.ptx) == (0, False)
    assert ("mma" in made.ptx) == (method == "tiles")
