"""Small models of the families that people run, whole through the importer and the evaluator, static and with symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from importer_harness import compile_and_run
from torch import Tensor, nn


class Residual(nn.Module):
    """A ResNet's stem, block and head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.block = nn.Sequential(
            nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)
        )
        self.skip = nn.Conv2d(8, 16, 1, 2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.head(F.adaptive_avg_pool2d(F.relu(self.block(x) + self.skip(x)), 1).flatten(1))
        return y


class Decoder(nn.Module):
    """Llama's: RMSNorm, rotary embedding, grouped queries, causal attention, SwiGLU, tied head."""

    frequency: Tensor

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.table = nn.Embedding(50, width)
        self.q, self.k, self.v = (nn.Linear(width, n, bias=False) for n in (width, width // 2, width // 2))
        self.norm = nn.RMSNorm(width)
        self.gate, self.up, self.down = nn.Linear(width, 48), nn.Linear(width, 48), nn.Linear(48, width)
        self.register_buffer("frequency", 1 / 10000 ** (torch.arange(0, width // heads, 2) / (width // heads)))

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.table(tokens)
        batch, length, width = x.shape
        y = self.norm(x)
        q, k, v = (f(y).view(batch, length, -1, width // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        angle = torch.outer(torch.arange(length), self.frequency).repeat(1, 2)
        q, k = (z * angle.cos() + self.rotate(z) * angle.sin() for z in (q, k))
        k, v = (z.repeat_interleave(2, 1) for z in (k, v))
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        y = self.norm(x)
        logits: Tensor = (x + self.down(F.silu(self.gate(y)) * self.up(y))) @ self.table.weight.t()
        return logits

    @staticmethod
    def rotate(z: Tensor) -> Tensor:
        half = z.shape[-1] // 2
        return torch.cat([-z[..., half:], z[..., :half]], -1)


class Windows(nn.Module):
    """Swin's: shift, partition, attention with a relative bias, merge."""

    where: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)
        self.bias = nn.Parameter(torch.randn(49, 2))
        self.register_buffer("where", torch.randint(0, 49, (16, 16)))
        self.merge = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-2, -2), (1, 2)).view(b, h // 4, 4, w // 4, 4, c)
        y = self.qkv(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c))
        q, k, v = y.view(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias[self.where.view(-1)].view(16, 16, 2).permute(2, 0, 1)
        y = (q * 0.5 @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(y, (2, 2), (1, 2))
        merged: Tensor = self.merge(torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1))
        return merged.mean((1, 2))


class Diffusion(nn.Module):
    """A U-Net's: time embedding, group norm, down and up, skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.up = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.ConvTranspose2d(16, 8, 2, 2),
        )
        self.norm, self.time, self.last = nn.GroupNorm(2, 16), nn.Linear(6, 16), nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        f = t[:, None].float() * torch.exp(-torch.arange(3) * 0.5)
        e = self.time(torch.cat([f.sin(), f.cos()], -1))
        h = F.silu(self.first(x))
        z = F.silu(self.norm(self.down(h) + e[:, :, None, None]))
        y: Tensor = self.last(torch.cat([h, self.up(z), F.interpolate(z, scale_factor=2)], 1))
        return y


class StateSpace(nn.Module):
    """Mamba's: causal depthwise convolution, selective scan step by step, gate."""

    def __init__(self, width: int = 8, states: int = 4) -> None:
        super().__init__()
        self.sizes = [width, states, states]
        self.into, self.mix, self.out = (
            nn.Linear(width, 2 * width),
            nn.Linear(width, width + 2 * states),
            nn.Linear(width, width),
        )
        self.conv = nn.Conv1d(width, width, 4, groups=width, padding=3)
        self.decay = nn.Parameter(torch.randn(width, states))

    def forward(self, u: Tensor) -> Tensor:
        x, z = self.into(u).chunk(2, -1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : u.shape[1]]).transpose(1, 2)
        dt, b, c = self.mix(x).split(self.sizes, -1)
        dt = F.softplus(dt)
        keep = torch.exp(-dt[..., None] * self.decay.exp())
        put = (dt * x)[..., None] * b[:, :, None]
        state, steps = torch.zeros_like(put[:, 0]), []
        for i in range(5):
            state = keep[:, i] * state + put[:, i]
            steps.append((state * c[:, i, None]).sum(-1))
        y: Tensor = self.out(torch.stack(steps, 1) * F.silu(z[:, :5]))
        return y


MODELS: dict[str, tuple[type[nn.Module], Callable[[], list[Tensor]]]] = {
    "resnet": (Residual, lambda: [torch.randn(2, 3, 33, 35)]),
    "llama": (Decoder, lambda: [torch.randint(0, 50, (2, 7))]),
    "swin": (Windows, lambda: [torch.randn(2, 3, 32, 32)]),
    "unet": (Diffusion, lambda: [torch.randn(2, 3, 16, 12), torch.tensor([3, 7])]),
    "mamba": (StateSpace, lambda: [torch.randn(2, 7, 8)]),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, dynamic: bool) -> None:
    make, inputs = MODELS[name]
    model, args = make().eval(), inputs()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        expected = model(*args)
    found, capture = compile_and_run(model, args, dynamic=dynamic)
    assert capture.refused == []
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
