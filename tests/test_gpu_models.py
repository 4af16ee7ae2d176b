"""Models as programs for a GPU, end to end: captured, lowered, and run kernel by kernel in the interpreter, against float64 and eager."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import assert_exact
from gpu_programs import InterpretingGpu, compiled_for_gpu, watched
from torch import Tensor, nn
from torch.nn import functional as F


def exact(model: nn.Module, *inputs: Any, dynamic: bool = False) -> InterpretingGpu:
    """Every op of ``model`` is in effc's kernels (else ``fallback="error"`` refuses), and the results are exact."""
    gpu = InterpretingGpu()
    compiled = compiled_for_gpu(model, gpu, dynamic=dynamic)
    with torch.no_grad(), watched(gpu):
        assert_exact(model, inputs, compiled)
    assert gpu.launched
    return gpu


class Block(nn.Module):
    """A transformer's block before its norms: grouped-query attention with rotary positions, a gated MLP."""

    def __init__(self, width: int = 64, heads: int = 4, groups: int = 2, hidden: int = 96) -> None:
        super().__init__()
        self.heads, self.groups, self.head = heads, groups, width // heads
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, groups * self.head, bias=False) for _ in range(2))
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def rotated(self, x: Tensor, start: int) -> Tensor:
        """``x`` [batch, heads, positions, channels]."""
        half = self.head // 2
        rate = 10000.0 ** (-torch.arange(half, device=x.device) / half)
        angle = (torch.arange(x.shape[2], device=x.device) + start)[:, None] * rate
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        low, high = x[..., :half], x[..., half:]
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:-1], heads, self.head).transpose(1, 2)

    def forward(self, x: Tensor, keys: Tensor | None = None, values: Tensor | None = None, at: int = 0) -> Tensor:
        """``keys`` and ``values``: a cache, into which this writes from position ``at`` on."""
        y = self.first(x)
        q, k = self.rotated(self.split(self.q(y), self.heads), at), self.rotated(self.split(self.k(y), self.groups), at)
        v = self.split(self.v(y), self.groups)
        if keys is not None and values is not None:
            keys[:, :, at : at + x.shape[1]], values[:, :, at : at + x.shape[1]] = k, v
            k, v = keys[:, :, : at + x.shape[1]], values[:, :, : at + x.shape[1]]
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=keys is None, enable_gqa=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y = self.second(x)
        mixed: Tensor = self.down(F.silu(self.gate(y)) * self.up(y))
        return x + mixed


class Residual(nn.Module):
    """ResNet's block that halves the image."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.two = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False)
        self.short = nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(2 * channels) for _ in range(3))
        for norm in self.norms:
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.one(x)))
        return F.relu(self.norms[1](self.two(y)) + self.norms[2](self.short(x)))


def made(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return build().eval().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transformers_block(dtype: torch.dtype) -> None:
    exact(made(Block, dtype), torch.randn(2, 19, 64).to(dtype))


class Windowed(nn.Module):
    """Attention in which a position sees itself and the ``window - 1`` before it."""

    def __init__(self, window: int = 7, width: int = 48, heads: int = 3) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.joined, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.joined(x).chunk(3, -1))
        at = torch.arange(x.shape[1], device=x.device)
        behind = at[:, None] - at
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=(behind >= 0) & (behind < self.window))
        found: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("length", [1, 67])
def test_attention_to_a_window(length: int, dtype: torch.dtype) -> None:
    """Blocks of keys of which a row sees nothing add nothing to it."""
    exact(made(Windowed, dtype), torch.randn(2, length, 48).to(dtype))


def test_a_decode_step_writes_its_row_of_the_cache() -> None:
    keys, values = (torch.randn(1, 2, 24, 16).bfloat16() for _ in range(2))
    exact(made(Block, torch.bfloat16), torch.randn(1, 1, 64).bfloat16(), keys, values, 20)


def test_a_residual_block_of_convolutions() -> None:
    exact(made(Residual, torch.float16), torch.randn(2, 16, 10, 9).half())


def test_depthwise_convolutions_and_pooling() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Hardswish(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(),
            nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.LogSoftmax(1),
        )  # fmt: skip

    exact(made(build), torch.randn(2, 3, 12, 10))


def test_sizes_that_change_from_call_to_call() -> None:
    model, gpu = made(Block), InterpretingGpu()
    compiled = compiled_for_gpu(model, gpu, dynamic=True)
    with torch.no_grad(), watched(gpu):
        for batch, length in ((2, 7), (3, 20), (2, 33)):
            x = torch.randn(batch, length, 64)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


def test_weights_that_change_are_seen() -> None:
    """What is prepared from them, a batch norm's scales, is computed anew."""
    model, gpu = made(Residual), InterpretingGpu()
    compiled, x = compiled_for_gpu(model, gpu), torch.randn(1, 16, 6, 6)
    with torch.no_grad(), watched(gpu):
        for _ in range(2):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
            model.norms[0].weight.mul_(2.0)  # type: ignore[index, union-attr]


@pytest.mark.parametrize("step", ["wait", "empty"])
def test_weights_whose_derivation_was_captured_are_derived_again(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture computes nothing, and CUDA refuses to wait in one, be it behind the derivation or within."""
    model, gpu = made(Residual), InterpretingGpu()
    compiled, x = compiled_for_gpu(model, gpu), torch.randn(1, 16, 6, 6)

    def refuse(*given: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    with torch.no_grad(), watched(gpu):
        with monkeypatch.context() as capturing:
            capturing.setattr(gpu, "launch", lambda table, count: None)
            capturing.setattr(gpu, step, refuse)
            capturing.setattr(gpu, "is_capturing", lambda: True)
            with pytest.raises(RuntimeError, match="capturing") as caught:
                compiled(x)
        assert any("before it is captured" in note for note in caught.value.__notes__)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_thread_launches_nothing_while_another_derives_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream would not wait for theirs."""
    model, gpu = made(Residual), InterpretingGpu()
    compiled, x = compiled_for_gpu(model, gpu), torch.randn(1, 16, 6, 6)
    results: list[Tensor] = []

    def call() -> None:
        with torch.no_grad():
            results.append(compiled(x))

    threads: list[threading.Thread] = []

    def wait() -> None:
        before = len(gpu.launched)
        threads.append(threading.Thread(target=call))
        threads[-1].start()
        threads[-1].join(0.2)
        assert len(gpu.launched) == before

    with torch.no_grad(), watched(gpu):
        compiled(x)
        model.norms[0].weight.mul_(2.0)  # type: ignore[index, union-attr]
        monkeypatch.setattr(gpu, "wait", wait)
        call()
        (thread,) = threads
        thread.join()
        for result in results:
            torch.testing.assert_close(result, model(x), rtol=1e-4, atol=1e-4)
    assert len(results) == 2


def test_derived_weights_are_held_for_each_stream_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and anew when they are derived anew: else what is freed could be another's before kernels there have ended."""
    model, gpu = made(Residual), InterpretingGpu()
    compiled, x = compiled_for_gpu(model, gpu), torch.randn(1, 16, 6, 6)
    held: list[int] = []
    with torch.no_grad(), watched(gpu):
        for stream in (1, 1, 2, 1):
            monkeypatch.setattr(gpu, "stream", lambda current=stream: current)
            monkeypatch.setattr(gpu, "hold", lambda tensors, current=stream: held.append(current) if tensors else None)
            compiled(x)
        assert held == [1, 2]
        model.norms[0].weight.mul_(2.0)  # type: ignore[index, union-attr]
        compiled(x)
    assert held == [1, 2, 1]


def test_weights_at_odd_addresses_are_copied_in_each_call() -> None:
    """Whether something is derived from them, or they are read as they are."""
    model, gpu = made(Residual), InterpretingGpu()
    for conv in (model.one, model.short):
        memory = torch.randn(conv.weight.numel() + 1) * 0.1  # type: ignore[union-attr, operator]
        conv.weight = nn.Parameter(memory[1:].view_as(conv.weight))  # type: ignore[union-attr, arg-type]
    compiled, x = compiled_for_gpu(model, gpu), torch.randn(1, 16, 6, 6)
    with torch.no_grad(), watched(gpu):
        for _ in range(2):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
            model.one.weight.mul_(2.0)  # type: ignore[union-attr, operator]


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 24)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(self.table(tokens), (24,))


def test_a_lookup_beyond_the_table_is_raised_by_a_later_call() -> None:
    """As CUDA's own assertions are; other memory is not touched, and nobody waits."""
    model, gpu = made(Lookup), InterpretingGpu()
    compiled = compiled_for_gpu(model, gpu)
    with torch.no_grad(), watched(gpu):
        tokens = torch.randint(0, 11, (3, 5))
        torch.testing.assert_close(compiled(tokens), model(tokens))
        tokens[1, 2] = 11
        compiled(tokens)
        tokens[1, 2] = 10
        with pytest.raises(IndexError, match=r"out of bounds .* with size 11 .*, in an earlier call on cuda:0"):
            compiled(tokens)
        torch.testing.assert_close(compiled(tokens), model(tokens))
    assert gpu.waits == 0


class Quantized(nn.Module):
    """A linear of int8 codes with a scale a channel, as quantization tools write it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randint(-127, 128, (40, 48), dtype=torch.int8))
        self.register_buffer("scales", (torch.rand(40, 1) * 0.01 + 0.001).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        codes, scales = self.get_buffer("codes"), self.get_buffer("scales")
        return F.linear(x, codes.to(x.dtype) * scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 20])
def test_weights_that_are_codes(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact(Quantized(dtype), torch.randn(rows, 48).to(dtype))


class Nibbles(nn.Module):
    """A linear of 4-bit codes, one in a byte, with zero points and scales for groups of 32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randint(0, 16, (40, 3, 32), dtype=torch.int8))
        self.register_buffer("zeros", torch.randint(0, 16, (40, 3, 1), dtype=torch.int8))
        self.register_buffer("scales", (torch.rand(40, 3, 1) * 0.01 + 0.001).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        codes, zeros, scales = (self.get_buffer(n) for n in ("codes", "zeros", "scales"))
        return F.linear(x, ((codes.to(x.dtype) - zeros.to(x.dtype)) * scales).flatten(1))


@pytest.mark.parametrize("rows", [1, 20])
def test_codes_of_four_bits_are_read_two_a_byte(rows: int) -> None:
    torch.manual_seed(0)
    gpu = exact(Nibbles(torch.bfloat16), torch.randn(rows, 96).bfloat16())
    (text,) = (text for _, text in gpu.kernels if "arith.shrui" in text)
    assert ("tt.dot" in text) == (rows > 1)
    assert rows == 1 or "xbf16>" in next(line for line in text.splitlines() if "tt.dot" in line)


def test_inputs_at_odd_addresses_and_of_other_strides() -> None:
    model, gpu = made(lambda: nn.Linear(16, 8)), InterpretingGpu()
    compiled = compiled_for_gpu(model, gpu)
    memory = torch.randn(16 * 20 + 1)
    with torch.no_grad(), watched(gpu):
        for x in (memory[1:].view(20, 16), memory[:320].view(16, 20).T, memory[:320].view(20, 16)):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
