"""Convolutions: layers of ResNet-50, MobileNetV2, ConvNeXt-Tiny, ViT-Base, DeepLab, ResNeXt, a 3-D U-Net and a speech encoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from effc.bench.kernels.kernel import Kernel, layer


def kernels() -> Iterator[Kernel]:
    yield from _dense()
    yield from _depthwise()
    yield layer("conv1d", partial(nn.Conv1d, 256, 256, 3, 1, 1), (1, 256, 512))
    yield layer("conv1d stride 2", partial(nn.Conv1d, 384, 384, 3, 2, 1), (1, 384, 1500))
    yield layer("conv3d", partial(nn.Conv3d, 16, 16, 3, 1, 1), (1, 16, 64, 64, 64))
    yield layer("conv3d", partial(nn.Conv3d, 64, 64, 3, 1, 1), (1, 64, 16, 16, 16))
    yield layer("conv transposed", partial(nn.ConvTranspose2d, 128, 64, 2, 2), (1, 128, 28, 28))
    yield layer("conv transposed", partial(nn.ConvTranspose2d, 64, 64, 4, 2, 1), (1, 64, 28, 28))


def _dense() -> Iterator[Kernel]:
    yield layer("conv7x7 stride 2", partial(nn.Conv2d, 3, 64, 7, 2, 3), (1, 3, 224, 224))
    yield layer("conv16x16 stride 16", partial(nn.Conv2d, 3, 768, 16, 16), (1, 3, 224, 224))
    for channels, side in ((64, 56), (128, 28), (256, 14), (512, 7)):
        yield layer("conv3x3", partial(nn.Conv2d, channels, channels, 3, 1, 1), (1, channels, side, side))
    yield layer("conv3x3 stride 2", partial(nn.Conv2d, 128, 128, 3, 2, 1), (1, 128, 56, 56))
    yield layer("conv3x3 dilated", partial(nn.Conv2d, 128, 128, 3, 1, 2, 2), (1, 128, 28, 28))
    for groups in (4, 32):
        yield layer(f"conv3x3 {groups} groups", partial(nn.Conv2d, 128, 128, 3, 1, 1, groups=groups), (1, 128, 56, 56))
    for before, after, side in ((64, 256, 56), (512, 128, 28), (1024, 256, 14), (512, 2048, 7)):
        yield layer("conv1x1", partial(nn.Conv2d, before, after, 1), (1, before, side, side))
    yield layer("conv1x1 stride 2", partial(nn.Conv2d, 256, 512, 1, 2), (1, 256, 56, 56))


def _depthwise() -> Iterator[Kernel]:
    for kernel, channels, side, stride in (
        (3, 144, 56, 1),
        (3, 576, 14, 1),
        (3, 144, 56, 2),
        (7, 96, 56, 1),
        (7, 384, 14, 1),
    ):
        yield layer(
            f"depthwise{kernel}x{kernel}" + (f" stride {stride}" if stride > 1 else ""),
            partial(nn.Conv2d, channels, channels, kernel, stride, kernel // 2, groups=channels),
            (1, channels, side, side),
        )
