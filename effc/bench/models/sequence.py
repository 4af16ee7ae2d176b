"""An MLP, a Mamba-like selective scan, an LSTM and a GRU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .entry import Case, Entry, Inputs, normal, settle


class SelectiveScan(nn.Module):
    """A Mamba block (Gu and Dao, 2023), its recurrence written as a loop over time in plain torch."""

    def __init__(self, dim: int, state: int = 16, expand: int = 2, kernel: int = 4) -> None:
        super().__init__()
        inner, self.rank, self.state = dim * expand, max(1, dim // 16), state
        self.norm = nn.LayerNorm(dim)
        self.inp, self.out = nn.Linear(dim, 2 * inner, bias=False), nn.Linear(inner, dim, bias=False)
        self.conv = nn.Conv1d(inner, inner, kernel, padding=kernel - 1, groups=inner)
        self.select, self.delta = nn.Linear(inner, self.rank + 2 * state, bias=False), nn.Linear(self.rank, inner)
        self.log_a = nn.Parameter(torch.log(torch.arange(1, state + 1).float()).repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        y, gate = self.inp(self.norm(x)).chunk(2, -1)
        y = F.silu(self.conv(y.transpose(1, 2))[..., :length]).transpose(1, 2)
        delta, b, c = self.select(y).split([self.rank, self.state, self.state], -1)
        delta = F.softplus(self.delta(delta))
        decay = torch.exp(delta[..., None] * -torch.exp(self.log_a))
        drive = (delta * y)[..., None] * b[:, :, None, :]
        h = torch.zeros_like(drive[:, 0])
        states = []
        for t in range(length):
            h = decay[:, t] * h + drive[:, t]
            states.append((h * c[:, t, None, :]).sum(-1))
        y = torch.stack(states, 1) + y * self.skip
        out: Tensor = x + self.out(y * F.silu(gate))
        return out


class Recurrent(nn.Module):
    """Two layers of ``nn.LSTM`` or ``nn.GRU`` and a classifier of the last step."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], dim: int, hidden: int) -> None:
        super().__init__()
        self.core = kind(dim, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.core(x)[0][:, -1])
        return out


def _sequence_case(name: str, module: nn.Module, dim: int, batch: int, length: int) -> Case:
    """The dynamic dimension is the batch."""

    def inputs(seed: int, step: int) -> Inputs:
        return (normal(seed, batch + step, length, dim),)

    return Case(name, settle(module), inputs)


def mlp(small: bool) -> Case:
    dim, hidden, out = (20, 33, 10) if small else (1024, 4096, 1024)
    net = nn.Sequential(
        nn.Linear(dim, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.LayerNorm(hidden),
        nn.Linear(hidden, out),
    )

    def inputs(seed: int, step: int) -> Inputs:
        return (normal(seed, (3 if small else 32) + step, dim),)

    return Case("mlp", settle(net), inputs)


def mamba(small: bool) -> Case:
    dim, depth, length = (16, 1, 5) if small else (256, 2, 32)
    net = nn.Sequential(*[SelectiveScan(dim) for _ in range(depth)])
    return _sequence_case("mamba", net, dim, 2, length)


def lstm(small: bool) -> Case:
    dim, hidden = (6, 8) if small else (128, 256)
    return _sequence_case("lstm", Recurrent(nn.LSTM, dim, hidden), dim, 2, 5 if small else 64)


def gru(small: bool) -> Case:
    dim, hidden = (6, 8) if small else (128, 256)
    return _sequence_case("gru", Recurrent(nn.GRU, dim, hidden), dim, 2, 5 if small else 64)


ENTRIES = (
    Entry("mlp", mlp),
    Entry("mamba", mamba),
    Entry("lstm", lstm, recurrent=True),
    Entry("gru", gru, recurrent=True),
)
