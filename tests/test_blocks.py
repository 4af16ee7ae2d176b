"""Residual blocks of the zoo: each is what its paper says it is, and those that no model has are exact through effc."""

from __future__ import annotations

import pytest
import torch
from exactness import assert_exact
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from effc.bench.models import BLOCKS, build_block
from effc.bench.models.convfirst import ConvFirstNet
from effc.bench.models.reparameterized import DilatedBranches, ResponseNorm
from effc.bench.models.vision import InvertedResidual
from effc.bench.models.vision_transformers import ConvNext


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_keep_shapes_and_are_the_same_everywhere(name: str) -> None:
    case, again = build_block(name, 24, 5), build_block(name, 24, 5)
    inputs = case.inputs(3, 1)
    with torch.no_grad():
        result = case.module(*inputs)
        torch.testing.assert_close(again.module(*again.inputs(3, 1)), result, rtol=0, atol=0)
    assert result.shape == inputs[-1].shape
    assert inputs[0].shape[0] == 2
    assert not torch.allclose(result, inputs[-1], atol=0.05)  # the body is no small part of it
    assert result.std() < 5  # and activations stay in scale


@pytest.mark.parametrize("name", ["inceptionnext", "unireplknet"])
def test_blocks_are_exact(name: str) -> None:
    torch._dynamo.reset()
    case = build_block(name, 24, 7)
    with torch.no_grad():
        assert_exact(case.module, case.inputs(1, 0), torch.compile(case.module, backend="effc"), strides=True)


def test_parallel_branches_are_one_convolution() -> None:
    """The sum of the branches equals a single depthwise convolution with the sum of their kernels, each spread by its dilation."""
    torch.manual_seed(3)
    branches = DilatedBranches(4, 13, ((5, 1), (3, 5))).double()
    x = torch.randn(2, 4, 17, 19, dtype=torch.float64)
    for _ in range(3):
        branches(x)  # batch norms see statistics
    branches.eval()
    kernel = torch.zeros(4, 1, 13, 13, dtype=torch.float64)
    bias = torch.zeros(4, dtype=torch.float64)
    for conv, norm in zip(branches.convolutions, branches.norms, strict=True):
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        reach, step = int(conv.padding[0]), conv.dilation[0]
        kernel[:, :, 6 - reach : 7 + reach : step, 6 - reach : 7 + reach : step] += (
            scale[:, None, None, None] * conv.weight
        )
        bias += norm.bias - scale * norm.running_mean
    torch.testing.assert_close(branches(x), F.conv2d(x, kernel, bias, padding=6, groups=4))


def test_response_norm_is_relative_to_the_mean_over_channels() -> None:
    norm = ResponseNorm(2)
    with torch.no_grad():
        norm.scale.fill_(1.0)
        norm.shift.zero_()
    x = torch.tensor([3.0, 1.0]).expand(1, 2, 2, 2)  # norms over four positions: 6 and 2, their mean 4
    torch.testing.assert_close(norm(x)[0, 0, 0], torch.tensor([3.0 * 2.5, 1.0 * 1.5]))


def test_squeeze_excitation_is_in_mbconv_alone() -> None:
    for name, excited in (("mbconv", True), ("inverted", False)):
        block = build_block(name, 16, 4).module
        assert isinstance(block, InvertedResidual)
        assert block.residual
        assert any("SqueezeExcitation" in type(m).__name__ for m in block.modules()) == excited


def test_a_convfirst_network_does_the_work_of_convnext_tiny() -> None:
    """By torch's counter, within a few percent: so what differs between them is efficiency."""
    depths, dims = (3, 3, 9, 3), (96, 192, 384, 768)
    flops = []
    with torch.device("meta"), torch.no_grad():
        for net in (ConvFirstNet(depths, dims, 1000), ConvNext(depths, dims, 1000)):
            with FlopCounterMode(display=False) as counter:
                net.eval()(torch.empty(1, 3, 224, 224))
            flops.append(counter.get_total_flops())
    assert flops[0] == pytest.approx(flops[1], rel=0.03)


@pytest.mark.parametrize(
    ("name", "width", "message"), [("convfirst", 20, "multiples of 8"), ("mlp", 0, "positive multiples of 1")]
)
def test_widths_that_cannot_be(name: str, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_block(name, width, 4)


def test_unknown_blocks() -> None:
    with pytest.raises(KeyError, match="no block 'resnext'; there are: basic"):
        build_block("resnext", 16, 4)
