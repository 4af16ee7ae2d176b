"""The kernels that ``effc bench --kernels`` measures: families of ops, each over a sweep of shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effc.bench.models.entry import Case, Inputs, normal


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(*inputs)


#: ``make()`` gives the module and the shapes of its inputs.
_Make = Callable[[], tuple[nn.Module, tuple[tuple[int, ...], ...]]]


def build(name: str) -> Case:
    """A kernel of ``KERNELS`` by its full name; weights are the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        module, shapes = KERNELS[name]()

    def inputs(seed: int, step: int) -> Inputs:
        return tuple(normal(seed + i, *shape) for i, shape in enumerate(shapes))

    return Case(name, module.eval(), inputs)


def family(name: str) -> str:
    """``"conv3x3"`` of ``"conv3x3/64x56x56-64"``."""
    return name.partition("/")[0]


def _linear() -> dict[str, _Make]:
    """Those of transformers: of BERT-base, a Llama of 135M with its head, and a square one."""
    sizes = ((768, 768), (768, 3072), (3072, 768), (576, 1536), (1024, 1024))
    shapes = [(m, k, n) for m in (1, 32, 128, 512) for k, n in sizes] + [(1, 576, 49152)]
    return {
        f"linear M={m}/{k}x{n}": lambda m=m, k=k, n=n: (nn.Linear(k, n), ((m, k),))  # type: ignore[misc]
        for m, k, n in shapes
    }


def _matmul() -> dict[str, _Make]:
    """Batch, M, K, N; both factors are inputs."""
    shapes = ((1, 512, 512, 512), (1, 1024, 1024, 1024), (12, 128, 64, 128), (12, 128, 128, 64), (8, 197, 64, 197))
    return {
        f"matmul/{b}x{m}x{k}x{n}": lambda b=b, m=m, k=k, n=n: (  # type: ignore[misc]
            _Function(torch.matmul),
            ((b, m, k), (b, k, n)),
        )
        for b, m, k, n in shapes
    }


def _convolutions() -> dict[str, _Make]:
    """Family, module and input of the layers of ResNet-50, MobileNetV2, ConvNeXt-Tiny, ViT-Base and a 3D U-Net."""
    layers: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
        ("conv7x7 stride 2", lambda: nn.Conv2d(3, 64, 7, 2, 3), (1, 3, 224, 224)),
        ("conv16x16 stride 16", lambda: nn.Conv2d(3, 768, 16, 16), (1, 3, 224, 224)),
        ("conv3x3", lambda: nn.Conv2d(64, 64, 3, 1, 1), (1, 64, 56, 56)),
        ("conv3x3", lambda: nn.Conv2d(128, 128, 3, 1, 1), (1, 128, 28, 28)),
        ("conv3x3", lambda: nn.Conv2d(256, 256, 3, 1, 1), (1, 256, 14, 14)),
        ("conv3x3", lambda: nn.Conv2d(512, 512, 3, 1, 1), (1, 512, 7, 7)),
        ("conv3x3 stride 2", lambda: nn.Conv2d(128, 128, 3, 2, 1), (1, 128, 56, 56)),
        ("conv3x3 dilated", lambda: nn.Conv2d(128, 128, 3, 1, 2, 2), (1, 128, 28, 28)),
        ("conv3x3 grouped", lambda: nn.Conv2d(128, 128, 3, 1, 1, groups=4), (1, 128, 56, 56)),
        ("conv1x1", lambda: nn.Conv2d(64, 256, 1), (1, 64, 56, 56)),
        ("conv1x1", lambda: nn.Conv2d(512, 128, 1), (1, 512, 28, 28)),
        ("conv1x1", lambda: nn.Conv2d(1024, 256, 1), (1, 1024, 14, 14)),
        ("conv1x1", lambda: nn.Conv2d(512, 2048, 1), (1, 512, 7, 7)),
        ("depthwise3x3", lambda: nn.Conv2d(144, 144, 3, 1, 1, groups=144), (1, 144, 56, 56)),
        ("depthwise3x3", lambda: nn.Conv2d(576, 576, 3, 1, 1, groups=576), (1, 576, 14, 14)),
        ("depthwise3x3 stride 2", lambda: nn.Conv2d(144, 144, 3, 2, 1, groups=144), (1, 144, 56, 56)),
        ("depthwise7x7", lambda: nn.Conv2d(96, 96, 7, 1, 3, groups=96), (1, 96, 56, 56)),
        ("depthwise7x7", lambda: nn.Conv2d(384, 384, 7, 1, 3, groups=384), (1, 384, 14, 14)),
        ("conv1d", lambda: nn.Conv1d(256, 256, 3, 1, 1), (1, 256, 512)),
        ("conv3d", lambda: nn.Conv3d(16, 16, 3, 1, 1), (1, 16, 64, 64, 64)),
        ("conv3d", lambda: nn.Conv3d(64, 64, 3, 1, 1), (1, 64, 16, 16, 16)),
        ("conv transposed", lambda: nn.ConvTranspose2d(128, 64, 2, 2), (1, 128, 28, 28)),
    ]
    return {
        f"{kind}/{'x'.join(map(str, shape[1:]))}": lambda make=make, shape=shape: (make(), (shape,))  # type: ignore[misc]
        for kind, make, shape in layers
    }


def _rows() -> dict[str, _Make]:
    """Over the last dimension; the largest are beyond any cache."""
    functions: dict[str, Callable[[int], nn.Module]] = {
        "softmax": lambda n: nn.Softmax(-1),
        "layer norm": lambda n: nn.LayerNorm(n),
        "rms norm": lambda n: nn.RMSNorm(n),
        "sum": lambda n: _Function(lambda x: x.sum(-1)),
        "max": lambda n: _Function(lambda x: x.amax(-1)),
        "column sum": lambda n: _Function(lambda x: x.sum(0)),
    }
    return {
        f"{kind}/{m}x{n}": lambda make=make, m=m, n=n: (make(n), ((m, n),))  # type: ignore[misc]
        for kind, make in functions.items()
        for m, n in ((128, 768), (1536, 128), (128, 50257), (16384, 1024))
    }


def _whole() -> dict[str, _Make]:
    """One number of all."""
    functions: dict[str, Callable[..., Tensor]] = {"sum of all": torch.sum, "max of all": torch.amax}
    return {
        f"{kind}/{n}": lambda f=f, n=n: (_Function(f), ((n,),))  # type: ignore[misc]
        for kind, f in functions.items()
        for n in (1 << 17, 1 << 24)
    }


def _elementwise() -> dict[str, _Make]:
    functions: dict[str, tuple[Callable[..., Tensor], int]] = {
        "add": (torch.add, 2),
        "relu": (torch.relu, 1),
        "gelu": (F.gelu, 1),
        "silu·mul": (lambda a, b: F.silu(a) * b, 2),
        "tanh": (torch.tanh, 1),
        "exp": (torch.exp, 1),
    }
    return {
        f"{kind}/{n}": lambda f=f, inputs=inputs, n=n: (_Function(f), ((n,),) * inputs)  # type: ignore[misc]
        for kind, (f, inputs) in functions.items()
        for n in (1 << 17, 1 << 24)
    }


def _moves() -> dict[str, _Make]:
    """Copies into another layout."""
    return {
        "transpose/1024x1024": lambda: (_Function(lambda x: x.t().contiguous()), ((1024, 1024),)),
        "transpose/4096x4096": lambda: (_Function(lambda x: x.t().contiguous()), ((4096, 4096),)),
        "to channels last/256x56x56": lambda: (
            _Function(lambda x: x.contiguous(memory_format=torch.channels_last)),
            ((1, 256, 56, 56),),
        ),
        "halves exchanged/32x4096x128": lambda: (
            _Function(lambda x: torch.cat([-x[..., 64:], x[..., :64]], -1)),
            ((32, 4096, 128),),
        ),
    }


def _attention() -> dict[str, _Make]:
    """Heads, queries, keys, head size; one query is a decode step."""

    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    shapes = (
        ("attention prefill", F.scaled_dot_product_attention, (12, 128, 128, 64)),
        ("attention prefill", F.scaled_dot_product_attention, (12, 197, 197, 64)),
        ("attention prefill", F.scaled_dot_product_attention, (12, 1024, 1024, 64)),
        ("attention causal", causal, (12, 128, 128, 64)),
        ("attention causal", causal, (12, 1024, 1024, 64)),
        ("attention decode", F.scaled_dot_product_attention, (12, 1, 128, 64)),
        ("attention decode", F.scaled_dot_product_attention, (12, 1, 2048, 64)),
    )
    return {
        f"{kind}/{h}x{q}x{k}x{d}": lambda f=f, h=h, q=q, k=k, d=d: (  # type: ignore[misc]
            _Function(f),
            ((1, h, q, d), (1, h, k, d), (1, h, k, d)),
        )
        for kind, f, (h, q, k, d) in shapes
    }


#: By full name, ``family/shape``; the shape of a linear is KxN, of others that of the input without the batch.
KERNELS: dict[str, _Make] = {
    **_linear(), **_matmul(), **_convolutions(), **_rows(), **_whole(), **_elementwise(),
    **_moves(), **_attention(),
}  # fmt: skip
