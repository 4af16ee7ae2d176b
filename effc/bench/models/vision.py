"""Convolutional networks: ResNet, MobileNetV2, an EfficientNet-like one, and a small ResNet for 28x28 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .entry import Case, Entry, Inputs, normal, settle


def conv_norm(inp: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution with "same" padding and no bias, then a batch norm."""
    return [nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2015)."""

    expansion = 1

    def __init__(self, inp: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_norm(inp, width, 3, stride), nn.ReLU(), *conv_norm(width, width, 3))
        self.shortcut = _shortcut(inp, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.relu(self.body(x) + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as in torchvision), 1x1 and a shortcut."""

    expansion = 4

    def __init__(self, inp: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(inp, width, 1),
            nn.ReLU(),
            *conv_norm(width, width, 3, stride),
            nn.ReLU(),
            *conv_norm(width, width * 4, 1),
        )
        self.shortcut = _shortcut(inp, width * 4, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.relu(self.body(x) + self.shortcut(x))
        return out


def _shortcut(inp: int, out: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 and inp == out else nn.Sequential(*conv_norm(inp, out, 1, stride))


class ResNet(nn.Module):
    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], width: int, classes: int
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        layers: list[nn.Module] = []
        inp = width
        for stage, depth in enumerate(depths):
            for i in range(depth):
                layers.append(block(inp, width << stage, 2 if stage and not i else 1))
                inp = (width << stage) * block.expansion
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inp, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.pool(self.layers(self.stem(x))).flatten(1))
        return out


class FashionResNet(nn.Module):
    """Three residual blocks on 1x28x28, 174 thousand parameters at width 24."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(1, width, 3), nn.ReLU())
        self.layers = nn.Sequential(
            BasicBlock(width, width, 1), BasicBlock(width, width * 2, 2), BasicBlock(width * 2, width * 4, 2)
        )
        self.head = nn.Linear(width * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(self.stem(x)).mean((2, 3)))
        return out


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.up(F.silu(self.down(scale))))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, (squeeze-excitation,) project 1x1: MobileNetV2's block; EfficientNet's with ``excite``."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int, expand: int, excite: bool) -> None:
        super().__init__()
        hidden = inp * expand
        act = nn.SiLU if excite else nn.ReLU6
        layers: list[nn.Module] = [*conv_norm(inp, hidden, 1), act()] if expand != 1 else []
        layers += [*conv_norm(hidden, hidden, kernel, stride, groups=hidden), act()]
        if excite:
            layers.append(SqueezeExcitation(hidden, max(1, inp // 4)))
        self.body = nn.Sequential(*layers, *conv_norm(hidden, out, 1))
        self.residual = stride == 1 and inp == out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.residual else out


class InvertedNet(nn.Module):
    """``stages``: (expand, channels, repeats, stride, kernel) each, as the two papers' tables give them."""

    def __init__(
        self, stages: tuple[tuple[int, int, int, int, int], ...], stem: int, last: int, excite: bool, classes: int
    ) -> None:
        super().__init__()
        act = nn.SiLU if excite else nn.ReLU6
        layers: list[nn.Module] = [*conv_norm(3, stem, 3, 2), act()]
        inp = stem
        for expand, channels, repeats, stride, kernel in stages:
            for i in range(repeats):
                layers.append(InvertedResidual(inp, channels, kernel, 1 if i else stride, expand, excite))
                inp = channels
        self.features = nn.Sequential(*layers, *conv_norm(inp, last, 1), act())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return out


#: Sandler et al., 2018, table 2.
_MOBILENET_V2 = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3), (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)  # fmt: skip
#: Tan and Le, 2019, table 1 (B0).
_EFFICIENTNET_B0 = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)  # fmt: skip
_TINY = ((1, 8, 1, 1, 3), (6, 12, 2, 2, 5), (4, 20, 1, 2, 3))


def _image_case(name: str, module: nn.Module, channels: int, side: int, batch: int) -> Case:
    """The dynamic dimension is the batch."""

    def inputs(seed: int, step: int) -> Inputs:
        return (normal(seed, batch + step, channels, side, side),)

    return Case(name, settle(module, (normal(0, 4, channels, side, side),)), inputs)


def resnet18(small: bool) -> Case:
    net = ResNet(BasicBlock, (1, 1, 1, 1) if small else (2, 2, 2, 2), 8 if small else 64, 10 if small else 1000)
    return _image_case("resnet18", net, 3, 33 if small else 224, 2 if small else 1)


def resnet50(small: bool, batch: int = 1) -> Case:
    net = ResNet(Bottleneck, (1, 1, 1, 1) if small else (3, 4, 6, 3), 8 if small else 64, 10 if small else 1000)
    return _image_case("resnet50", net, 3, 32 if small else 224, 2 if small else batch)


def mobilenet_v2(small: bool) -> Case:
    net = InvertedNet(_TINY, 8, 32, False, 10) if small else InvertedNet(_MOBILENET_V2, 32, 1280, False, 1000)
    return _image_case("mobilenet_v2", net, 3, 32 if small else 224, 2 if small else 1)


def efficientnet(small: bool) -> Case:
    net = InvertedNet(_TINY, 8, 32, True, 10) if small else InvertedNet(_EFFICIENTNET_B0, 32, 1280, True, 1000)
    return _image_case("efficientnet_b0", net, 3, 32 if small else 224, 2 if small else 1)


def fashion_resnet(small: bool) -> Case:
    return _image_case("fashion_resnet", FashionResNet(8 if small else 24), 1, 28, 3 if small else 32)


ENTRIES = (
    Entry("resnet18", resnet18),
    Entry("resnet50", resnet50),
    Entry("mobilenet_v2", mobilenet_v2),
    Entry("efficientnet_b0", efficientnet),
    Entry("fashion_resnet", fashion_resnet),
)
