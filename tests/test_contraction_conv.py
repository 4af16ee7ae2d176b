"""Direct convolutions over a padded input: any rank, stride, dilation and groups, in both memory formats."""

from __future__ import annotations

import pytest
import torch
from contraction_cases import Case, Runner
from kernels import HOST

from effc.compiler.codegen.cpu.contraction.cast import cast
from effc.compiler.codegen.cpu.schedules import packing
from effc.compiler.codegen.cpu.target import Target


def conv_case(
    batch: int | str,
    channels: int,
    out_channels: int,
    spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    last: bool = True,
    dtype: str = "f32",
    offset: int = 0,
    result: str = "",
) -> Case:
    """Dims: n, [group], out-channel, spatial…, kernel…, c. ``last``: channels are contiguous (else spatial)."""
    outs = [(s - dilation * (k - 1) - 1) // stride + 1 for s, k in zip(spatial, kernel, strict=True)]
    x_space, y_space = _strides(spatial, channels if last else 1), _strides(tuple(outs), out_channels if last else 1)
    volume = 1
    for s in spatial:
        volume *= s
    out_volume = 1
    for s in outs:
        out_volume *= s
    x_channel, y_channel = (1, 1) if last else (volume, out_volume)
    c, o = channels // groups, out_channels // groups
    taps = _strides(kernel, 1)
    window = 1
    for k in kernel:
        window *= k
    n = len(spatial)
    sizes = (batch, groups, o, *outs, *kernel, c)
    lhs = (
        volume * channels,
        c * x_channel,
        0,
        *(s * stride for s in x_space),
        *(s * dilation for s in x_space),
        x_channel,
    )
    rhs = (0, o * c * window, c * window, *([0] * n), *taps, window)
    out = (out_volume * out_channels, o * y_channel, y_channel, *y_space, *([0] * n), 0)
    bias = (0, o, 1, *([0] * n))
    return Case(sizes, n + 1, lhs, rhs, out, bias=bias, relu=True, dtype=dtype, offset=offset, result=result)


def _strides(sizes: tuple[int, ...], inner: int) -> list[int]:
    strides = [inner]
    for s in reversed(sizes[1:]):
        strides.insert(0, strides[0] * s)
    return strides


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ranks_strides_and_dilations(rank: int, stride: int, dilation: int, last: bool) -> None:
    spatial, kernel = (9, 11, 13)[-rank:], (3, 2, 3)[-rank:]
    case = conv_case(2, 5, 35, spatial, kernel, stride=stride, dilation=dilation, last=last)
    for pack in (None, 1):
        Runner(case, pack=pack).check(threads=2)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("groups", "channels", "out"), [(2, 8, 40), (4, 12, 8), (32, 32, 32), (24, 24, 24), (5, 5, 5), (6, 6, 12)]
)
def test_groups_and_depthwise(groups: int, channels: int, out: int, last: bool) -> None:
    case = conv_case(2, channels, out, (10, 9), (3, 3), groups=groups, last=last)
    Runner(case).check(threads=2)
    if groups == channels == out and not last:  # the pixels are the columns, and the weights are scalars
        assert packing(case.spec(), [1], HOST) == "a factor without columns (N = 1) is read in place, not packed"
    else:
        Runner(case, pack=1).check(threads=2)


@pytest.mark.parametrize("name", ["avx512", "avx2", "x86-64"])
@pytest.mark.parametrize(
    ("each", "groups", "spatial", "kernel", "stride", "dilation"),
    [
        (4, 32, (9, 31), (3, 3), 1, 1),
        (4, 5, (9, 11), (3, 3), 2, 1),
        (2, 7, (9, 11), (3, 5), 1, 2),
        (8, 3, (7, 30), (3, 3), 1, 1),
        (4, 9, (5, 6), (1, 1), 1, 1),
        (2, 33, (17,), (3,), 1, 1),
        (8, 4, (9, 9), (7, 4), 3, 1),
        (4, 6, (3, 4), (3, 3), 1, 1),
        (4, 3, (5, 4, 6), (2, 3, 3), 1, 1),
    ],
)
def test_groups_of_few_channels_share_vectors(
    each: int, groups: int, spatial: tuple[int, ...], kernel: tuple[int, ...], stride: int, dilation: int, name: str
) -> None:
    target, channels = Target.named(name), each * groups
    case = conv_case(2, channels, channels, spatial, kernel, stride=stride, dilation=dilation, groups=groups)
    runner = Runner(case, 1, target)
    nest = cast(runner.kernel.spec, target)
    assert not isinstance(nest, str)
    assert nest.channels == (each if 2 * each <= target.lanes(4) else 0)
    runner.check()
    runner.check(threads=2)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_groups_of_few_channels_in_low_precision(dtype: str) -> None:
    Runner(conv_case(1, 36, 36, (7, 9), (3, 3), groups=9, dtype=dtype, result="f32"), 1).check()


def test_groups_of_wide_windows_or_unequal_channels_keep_their_own_vectors() -> None:
    for case in (conv_case(1, 32, 32, (4, 12), (1, 9), groups=8), conv_case(1, 32, 64, (5, 6), (3, 3), groups=8)):
        runner = Runner(case, 1)
        nest = cast(runner.kernel.spec, HOST)
        assert not isinstance(nest, str)
        assert not nest.channels
        runner.check()


def test_batch_known_only_at_run_time() -> None:
    runner = Runner(conv_case("s0", 6, 20, (8, 8), (3, 3)), pack=1)
    for n in (0, 1, 3):
        runner.check(s0=n, threads=2)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (7, 7)])
@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_low_precision(dtype: str, channels: int, kernel: tuple[int, int]) -> None:
    Runner(conv_case(1, channels, 24, (9, 12), kernel, dtype=dtype, result="f32"), pack=1).check()


@pytest.mark.parametrize("target", ["avx2", "avx512"])
def test_other_targets(target: str) -> None:
    Runner(conv_case(1, 8, 24, (9, 12), (3, 3)), pack=1, target=Target.named(target)).check()
    Runner(conv_case(1, 24, 24, (9, 12), (3, 3), groups=24), pack=1, target=Target.named(target)).check()


def test_weight_first() -> None:
    """conv as [oc, …] x [n, …]: the constant first operand becomes the columns."""
    case = conv_case(1, 4, 32, (8, 8), (3, 3))
    swapped = Case(case.sizes, case.sums, case.rhs, case.lhs, case.out)
    runner = Runner(swapped, pack=0)
    runner.check()
    assert torch.tensor(runner.attributes["sizes"]).prod() == 32 * 4 * 9
