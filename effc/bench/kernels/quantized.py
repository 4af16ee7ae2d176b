"""Quantized layers: products and convolutions of bytes, and linear layers whose weights alone are codes.

In place of what torch has no kernel for, eager runs the float layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effc.bench.kernels.kernel import Kernel, layer, normals
from effc.bench.models.entry import generator

#: K, N of products of bytes; M, K, N of weights alone: beyond the caches for one row, BERT's and a square for many.
_PRODUCTS = ((768, 768), (768, 3072), (3072, 768), (1024, 1024))
_WEIGHTS = ((1, 4096, 4096), (1, 576, 49152), (128, 768, 3072), (128, 1024, 1024), (128, 4096, 4096))
#: Side of the window, channels, output channels, side of the image: of ResNet-50.
_CONVOLUTIONS = (
    *((3, 64, 64, 56), (3, 128, 128, 28), (3, 256, 256, 14), (3, 512, 512, 7)),
    *((1, 64, 256, 56), (1, 512, 128, 28), (1, 1024, 256, 14), (1, 512, 2048, 7)),
)
#: Elements of the sum that share a scale, by bits of a code; 0: all.
_GROUPS = {8: 0, 4: 64}


def kernels() -> Iterator[Kernel]:
    for m in (1, 128):
        for k, n in _PRODUCTS:
            yield Kernel(
                f"int8 product M={m}/{k}x{n}", partial(Product, k, n), (partial(_rows, m, k),),
                flops=2 * m * k * n, arithmetic="int8",
            )  # fmt: skip
    for kernel, channels, out, side in _CONVOLUTIONS:
        shape, make = (1, channels, side, side), partial(nn.Conv2d, channels, out, kernel, 1, kernel // 2)
        dense = layer(f"conv{kernel}x{kernel}", make, shape)
        yield Kernel(
            f"int8 {dense.name}", partial(Convolution, make), (partial(_image, shape),), arithmetic="int8", dense=dense
        )
    for bits, group in _GROUPS.items():
        for m, k, n in _WEIGHTS:
            dense = Kernel(f"linear M={m}/{k}x{n}", partial(nn.Linear, k, n, bias=False), normals((m, k)))
            scales = n * (k // group if group else 1)
            yield Kernel(
                f"int{bits} weights M={m}/{k}x{n}", partial(CodedLinear, k, n, bits, group), dense.inputs,
                bytes=n * k * bits // 8 + 4 * (scales + m * k + m * n), dense=dense,
            )  # fmt: skip


class Product(nn.Module):
    """int8 ``[m, k]`` by a constant int8 ``[n, k]``, transposed, in int32."""

    weight: Tensor

    def __init__(self, k: int, n: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (n, k), dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return torch._int_mm(x, self.weight.T)


class Convolution(nn.Module):
    """Between unsigned bytes, as inside a quantized model: int8 weights with a scale a channel, bias and ReLU."""

    codes: Tensor
    scales: Tensor

    def __init__(self, make: Callable[[], nn.Conv2d]) -> None:
        super().__init__()
        layer = make()
        self.register_buffer("codes", torch.randint(-127, 128, layer.weight.shape, dtype=torch.int8))
        self.register_buffer("scales", torch.rand(layer.out_channels, 1, 1, 1) * 1e-4 + 1e-4)
        self.bias = nn.Parameter(torch.randn(layer.out_channels))
        self._stride, self._padding = layer.stride, layer.padding

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.scales.dtype
        image, weight = (x.to(dtype) - 128) * 0.02, self.codes.to(dtype) * self.scales
        y = F.relu(F.conv2d(image, weight, self.bias, self._stride, self._padding))
        return (y * 50).round().clamp(0, 255).to(torch.uint8)


class CodedLinear(nn.Module):
    """Signed codes of ``bits``, in groups of ``group`` elements of the sum (0: all), each with a scale."""

    codes: Tensor
    scales: Tensor

    def __init__(self, k: int, n: int, bits: int, group: int) -> None:
        super().__init__()
        half = 1 << (bits - 1)
        self.register_buffer("codes", torch.randint(-half, half, (n, k), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(n, k // (group or k), 1) / (half * k**0.5) + 1e-4)

    def forward(self, x: Tensor) -> Tensor:
        n, groups, _ = self.scales.shape
        weight = self.codes.view(n, groups, -1).to(self.scales.dtype) * self.scales
        return F.linear(x, weight.view(n, -1))


def _rows(m: int, k: int, seed: int) -> Tensor:
    return torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator(seed))


def _image(shape: tuple[int, ...], seed: int) -> Tensor:
    """Channels last, as between convolutions."""
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))
    return image.to(memory_format=torch.channels_last)
