"""Winograd's method against float64 and torch: any size, threads, targets, NaN and infinity, and its error beside eager's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from contraction_cases import Case, Runner, packed
from kernels import HOST
from test_contraction_conv import conv_case

from effc.compiler.codegen.cpu.schedules import Packing, alternatives, candidates, packing
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.winograd.choice import offered
from effc.compiler.codegen.cpu.winograd.form import find
from effc.compiler.ir.spec import Schedule
from effc.runtime.derive import derive


def relative_l2(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


def schedules(case: Case, target: Target = HOST) -> list[Schedule]:
    found = offered(packed(case.spec(), 1), target)
    assert found, find(packed(case.spec(), 1), target)
    return found


def runner(case: Case, target: Target = HOST, number: int = 0) -> Runner:
    return Runner(case, pack=1, target=target, plan=schedules(case, target)[number])


@pytest.mark.parametrize("height", [2, 3, 8])
@pytest.mark.parametrize("width", [5, 12])
@pytest.mark.parametrize("columns", [8, 16, 35])
def test_sizes_and_their_remainders(height: int, width: int, columns: int) -> None:
    """Outputs of an odd size end in half a tile; columns in part of a vector."""
    found = runner(conv_case(2, 16, columns, (height + 2, width + 2), (3, 3)))
    for threads in (1, 2):
        found.check(threads=threads)


@pytest.mark.parametrize("number", range(4))
def test_every_offered_schedule(number: int) -> None:
    runner(conv_case(3, 48, 80, (15, 17), (3, 3)), number=number).check(threads=3)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (2, 3, 3)])
def test_depth_is_summed_like_channels(kernel: tuple[int, int, int]) -> None:
    runner(conv_case(2, 16, 32, (5, 9, 10), kernel)).check(threads=2)


@pytest.mark.parametrize("name", ["avx512", "avx2"])
@pytest.mark.parametrize(("groups", "channels", "columns"), [(2, 16, 16), (4, 32, 32), (3, 48, 19), (5, 16, 40)])
def test_each_group_has_a_kernel_of_its_own(groups: int, channels: int, columns: int, name: str) -> None:
    case = conv_case(2, groups * channels, groups * columns, (9, 12), (3, 3), groups=groups)
    made = runner(case, Target.named(name))
    made.check()
    made.check(threads=2)


def test_batch_known_only_at_run_time() -> None:
    found = runner(conv_case("s0", 32, 48, (9, 8), (3, 3)))
    for n in (0, 1, 2, 23):
        found.check(s0=n, threads=2)


def test_image_known_only_at_run_time() -> None:
    """Sizes and the strides that follow from them are symbols; odd and even ones run through one kernel."""
    case = Case(
        (2, 32, "h", "w", 3, 3, 16), 3, ("(h + 2)*(w + 2)*16", 0, "(w + 2)*16", 16, "(w + 2)*16", 16, 1),
        (0, 144, 0, 0, 3, 1, 9), ("h*w*32", 1, "w*32", 32, 0, 0, 0), bias=(0, 1, 0, 0), relu=True,
    )  # fmt: skip
    found = runner(case)
    for h, w in ((1, 1), (2, 3), (7, 4), (12, 12)):
        found.check(h=h, w=w, threads=2)


@pytest.mark.parametrize("name", ["avx512", "avx2"])
def test_other_targets(name: str) -> None:
    runner(conv_case(1, 16, 24, (11, 12), (3, 3)), target=Target.named(name)).check()


def test_long_sums_over_several_blocks() -> None:
    runner(conv_case(1, 512, 16, (30, 31), (3, 3))).check(threads=2)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (
            conv_case(1, 16, 16, (9, 9), (3, 3), stride=2),
            "not two dimensions with 3 taps at stride 1, without dilation",
        ),
        (
            conv_case(1, 16, 16, (9, 9), (3, 3), dilation=2),
            "not two dimensions with 3 taps at stride 1, without dilation",
        ),
        (conv_case(1, 16, 16, (9, 9), (1, 3)), "not two dimensions with 3 taps at stride 1, without dilation"),
        (conv_case(1, 8, 16, (9, 9), (3, 3)), "the input's channels do not fill vectors of 16"),
        (conv_case(1, 64, 64, (9, 9), (3, 3), groups=64), "a depthwise convolution"),
        (conv_case(1, 16, 16, (9, 9), (3, 3), last=False), "the input's channels are not contiguous"),
        (conv_case(1, 16, 16, (9, 9), (3, 3), dtype="bf16", result="f32"), "only float32"),
    ],
)
def test_what_it_does_not_serve_says_why(case: Case, reason: str) -> None:
    found = find(packed(case.spec(), 1), Target.named("avx512"))
    if isinstance(found, str):
        assert found == reason
    else:
        raise AssertionError(f"taken, though {reason}")


def _convolve(x: torch.Tensor, w: torch.Tensor, plan: Schedule | None = None) -> torch.Tensor:
    """A convolution without padding of ``x`` [n, c, h, w], through the kernel that ``plan`` or the default rule chooses."""
    n, c, *space = x.shape
    case = conv_case(n, c, len(w), (space[0], space[1]), (3, 3))
    found = Runner(case, pack=1, plan=plan)
    last = x.permute(0, 2, 3, 1).contiguous()
    out = torch.full((n, space[0] - 2, space[1] - 2, len(w)), float("nan"))
    spec = found.kernel.spec
    scratch = [torch.full((o.size.constant or 0,), float("nan")) for o in spec.operands if o.role == "scratch"]
    found.kernel([last, derive(found.derivation, w, found.attributes), torch.zeros(len(w)), out, *scratch], (), 2)
    return out.permute(0, 3, 1, 2)


def _winograd(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    case = conv_case(len(x), x.shape[1], len(w), (x.shape[2], x.shape[3]), (3, 3))
    return _convolve(x, w, schedules(case)[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_nan_infinity_and_overflow_are_the_convolutions_own(value: float) -> None:
    """Winograd's differences of infinities would be NaN, and those of huge numbers infinite."""
    torch.manual_seed(0)
    x, w = torch.randn(1, 16, 9, 9), torch.randn(32, 16, 3, 3)
    x[0, 3, 4, 5] = value
    if value == 3e38:
        x[0, 3, 4, 6] = value
        w *= 1e-3
    expected = F.conv2d(x, w).relu()
    got = _winograd(x, w)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.isinf(), expected.isinf())
    finite = expected.isfinite()
    largest = w.abs().amax((2, 3), keepdim=True).expand_as(w)  # a tap is known to the precision of its neighbours
    size = F.conv2d(x.abs().nan_to_num(0, 0), largest)[finite]
    assert ((got - expected)[finite].abs() <= 1e-5 * size).all()


@pytest.mark.parametrize(("channels", "side"), [(64, 56), (128, 28), (256, 14), (512, 7)])
def test_error_at_the_sizes_of_resnet(channels: int, side: int) -> None:
    """Within the bound of docs: twice eager's relative error, or 4 eps."""
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(1, channels, side, side).relu()
        w = torch.randn(channels, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
        true = F.conv2d(x.double(), w.double(), padding=1).relu()
        eager = relative_l2(F.conv2d(x, w, padding=1).relu(), true)
        ours = relative_l2(_winograd(F.pad(x, (1, 1, 1, 1)), w), true)
        assert ours <= max(2 * eager, 4 * torch.finfo(torch.float32).eps), (ours, eager)


def test_the_number_of_threads_does_not_change_the_bits() -> None:
    case = conv_case(1, 32, 64, (30, 30), (3, 3))
    found = runner(case)
    x, w, bias = torch.randn(30 * 30 * 32), torch.randn(64, 32, 3, 3), torch.randn(64)
    scratch = torch.full((found.kernel.spec.operands[-1].size.constant or 0,), float("nan"))
    results = []
    for threads in (1, 2, 5):
        out = torch.full((28 * 28 * 64,), float("nan"))
        found.kernel([x, derive(found.derivation, w, found.attributes), bias, out, scratch], (), threads)
        results.append(out)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_chosen_by_default_and_offered_to_plans() -> None:
    """One kernel by either method: a plan finds its decision whichever method the default rule takes."""
    found = packing(conv_case(1, 64, 64, (58, 58), (3, 3)).spec(), [1], HOST)
    assert isinstance(found, Packing)
    assert found.spec.schedule.get("winograd") == 2
    specs = alternatives(found.spec, HOST)
    assert specs[0] == found.spec
    direct = [s for s in specs if not s.schedule.get("winograd")]
    assert direct
    assert len({s.key() for s in specs}) == 1
    for spec in direct:
        assert [o.role for o in spec.operands] == ["read", "packed", "read", "write"]
        wanted = packing(conv_case(1, 64, 64, (58, 58), (3, 3)).spec(), [1], HOST, {spec.key(): spec.schedule})
        assert isinstance(wanted, Packing)
        assert wanted.spec == spec
    assert candidates(direct[0], HOST) == [s.schedule for s in specs]


def test_few_channels_stay_with_the_direct_method() -> None:
    """Eight columns: the transforms cost what the products save."""
    found = packing(conv_case(1, 16, 8, (58, 58), (3, 3)).spec(), [1], HOST)
    assert isinstance(found, Packing)
    assert not found.spec.schedule.get("winograd")


def test_a_plan_for_unknown_sizes_suits_small_images() -> None:
    """The 16 tiles of a 7x7 image are one block, for which a kernel beyond the caches is read once."""
    plan = schedules(conv_case("s0", 512, 512, (9, 9), (3, 3)))[0]
    assert plan["tiles"] >= 16
    assert -(-16 // plan["mr"]) * plan["mr"] <= 18, "nor are many rows computed that no output needs"
