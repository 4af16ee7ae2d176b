"""Language models in plain torch: BERT, MiniLM, GPT-2 and Llamas of 135M and 1B, the last two for a prompt and for one
decoded token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .entry import Case, Entry, Inputs, normal, settle, tokens

Cache = tuple[tuple[Tensor, Tensor], ...]


def heads_of(x: Tensor, heads: int) -> Tensor:
    """``[b, n, h*d] -> [b, h, n, d]``."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(1, 2)


class BertLayer(nn.Module):
    """Post-norm encoder layer with explicit softmax attention (Devlin et al., 2018)."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-12), nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (heads_of(f(x), self.heads) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(y))
        out: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return out


class Bert(nn.Module):
    """Encoder and pooler. Inputs: token numbers and an int64 attention mask, both ``[batch, length]``;
    ``pooled="mean"`` is MiniLM's.
    """

    def __init__(self, vocabulary: int, dim: int, depth: int, heads: int, positions: int, pooled: str = "cls") -> None:
        super().__init__()
        self.pooled = pooled
        self.words, self.positions, self.types = (nn.Embedding(n, dim) for n in (vocabulary, positions, 2))
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.layers = nn.ModuleList(BertLayer(dim, heads, 4 * dim) for _ in range(depth))
        self.pooler = nn.Linear(dim, dim)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        position = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(position) + self.types(torch.zeros_like(ids)))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layers:
            x = layer(x, mask)
        if self.pooled == "cls":
            return x, torch.tanh(self.pooler(x[:, 0]))
        weight = attention_mask[..., None].to(x.dtype)
        mean = (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return x, F.normalize(mean, p=2.0, dim=1)


class Gpt2Layer(nn.Module):
    """Pre-norm decoder layer (Radford et al., 2019); ``past`` is the cache so far, and the grown one is returned."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = (heads_of(t, self.heads) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return x, (k, v)


class Gpt2(nn.Module):
    """Logits and the cache. The output projection is tied to the token embedding."""

    def __init__(self, vocabulary: int, dim: int, depth: int, heads: int, positions: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, dim), nn.Embedding(positions, dim)
        self.layers = nn.ModuleList(Gpt2Layer(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        start = 0 if past is None else past[0][0].shape[2]
        x = self.words(ids) + self.positions(torch.arange(start, start + ids.shape[1], device=ids.device))
        cache = []
        for i, layer in enumerate(self.layers):
            x, kv = layer(x, None if past is None else past[i])
            cache.append(kv)
        return self.norm(x) @ self.words.weight.T, tuple(cache)


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, the half-split form (Su et al., 2021)."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class LlamaLayer(nn.Module):
    """RMSNorm, RoPE, grouped queries, SwiGLU (Touvron et al., 2023). A given cache is a static one, written in
    place.
    """

    def __init__(self, dim: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, head = heads, kv_heads, dim // heads
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.query, self.out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.key, self.value = (nn.Linear(dim, kv_heads * head, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(dim, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: tuple[Tensor, Tensor] | None,
        position: Tensor,
    ) -> Tensor:
        y = self.norm1(x)
        q = rotate(heads_of(self.query(y), self.heads), cos, sin)
        k = rotate(heads_of(self.key(y), self.kv_heads), cos, sin)
        v = heads_of(self.value(y), self.kv_heads)
        if cache is not None:
            k, v = cache[0].index_copy_(2, position, k), cache[1].index_copy_(2, position, v)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class Llama(nn.Module):
    """Logits for tokens at ``position`` (int64, one for each token); ``cache``: ``[batch, kv_heads, capacity, head]``
    pairs.
    """

    inverse_frequency: Tensor

    def __init__(self, vocabulary: int, dim: int, depth: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList(LlamaLayer(dim, heads, kv_heads, hidden) for _ in range(depth))
        self.norm = RMSNorm(dim)
        head = dim // heads
        self.register_buffer("inverse_frequency", 1.0 / 10000 ** (torch.arange(0, head, 2).float() / head))

    def hidden(self, ids: Tensor, position: Tensor, cache: Cache | None = None) -> Tensor:
        """What the output projection, tied to the token embedding, reads: ``[batch, tokens, dim]``."""
        x = self.words(ids)
        angle = position[:, None].to(x.dtype) * self.inverse_frequency
        angle = torch.cat([angle, angle], -1)
        mask = None
        if cache is not None:
            mask = torch.arange(cache[0][0].shape[2], device=ids.device)[None, :] <= position[:, None]
        for i, layer in enumerate(self.layers):
            x = layer(x, angle.cos(), angle.sin(), mask, None if cache is None else cache[i], position)
        out: Tensor = self.norm(x)
        return out

    def forward(self, ids: Tensor, position: Tensor, cache: Cache | None = None) -> Tensor:
        return self.hidden(ids, position, cache) @ self.words.weight.T


def _encoder(name: str, small: bool, dim: int, depth: int, heads: int, pooled: str) -> Case:
    net = Bert(211, 32, 2, 4, 64, pooled) if small else Bert(30522, dim, depth, heads, 512, pooled)
    batch, length, vocabulary = (2, 13, 211) if small else (1, 128, 30522)

    def inputs(seed: int, step: int) -> Inputs:
        mask = torch.ones(batch, length + step, dtype=torch.int64)
        mask[-1, (length + step) * 3 // 4 :] = 0
        return tokens(seed, vocabulary, batch, length + step), mask

    return Case(name, settle(_scaled_embeddings(net)), inputs)


def _scaled_embeddings(net: nn.Module) -> nn.Module:
    """Embeddings at 0.02, as the published models initialize them, so that tied logits stay O(1)."""
    for m in net.modules():
        if isinstance(m, nn.Embedding):
            nn.init.normal_(m.weight, std=0.02 if m.num_embeddings > 100 else 0.1)
    return net


def _gpt2(small: bool) -> tuple[Gpt2, int, int, int, int]:
    """The model, its vocabulary, depth, heads and head size."""
    if small:
        return Gpt2(211, 32, 2, 4, 64), 211, 2, 4, 8
    return Gpt2(50257, 768, 12, 12, 1024), 50257, 12, 12, 64


def gpt2_prefill(small: bool) -> Case:
    net, vocabulary, *_ = _gpt2(small)
    return Case(
        "gpt2_prefill",
        settle(_scaled_embeddings(net)),
        lambda seed, step: (tokens(seed, vocabulary, 1, (11 if small else 128) + step),),
    )


def gpt2_decode(small: bool) -> Case:
    """One token after a cache that grows by concatenation: the dynamic dimension is the length of the cache."""
    net, vocabulary, depth, heads, head = _gpt2(small)
    past = 9 if small else 127

    def inputs(seed: int, step: int) -> Inputs:
        shape = (1, heads, past + step, head)
        cache = tuple((normal(seed + 2 * i + 1, *shape), normal(seed + 2 * i + 2, *shape)) for i in range(depth))
        return tokens(seed, vocabulary, 1, 1), cache

    return Case("gpt2_decode", settle(_scaled_embeddings(net)), inputs)


@dataclass(frozen=True)
class LlamaSize:
    """``prompt``: tokens of a prefill; ``capacity``: of the cache of a decode step, which is half full."""

    vocabulary: int
    dim: int
    depth: int
    heads: int
    kv_heads: int
    hidden: int
    prompt: int
    capacity: int

    @property
    def head(self) -> int:
        return self.dim // self.heads

    def net(self) -> nn.Module:
        made = Llama(self.vocabulary, self.dim, self.depth, self.heads, self.kv_heads, self.hidden)
        return settle(_scaled_embeddings(made))


_TINY = LlamaSize(211, 36, 2, 6, 2, 48, prompt=11, capacity=16)
#: SmolLM2-135M's figures, and those of Llama-3.2-1B with Llama 2's vocabulary.
SMOLLM2 = LlamaSize(49152, 576, 30, 9, 3, 1536, prompt=128, capacity=256)
LLAMA_1B = LlamaSize(32000, 2048, 16, 32, 8, 8192, prompt=2048, capacity=4096)


def llama_prefill(small: bool, size: LlamaSize = SMOLLM2, name: str = "llama_prefill") -> Case:
    size = _TINY if small else size

    def inputs(seed: int, step: int) -> Inputs:
        length = size.prompt + step
        return tokens(seed, size.vocabulary, 1, length), torch.arange(length)

    return Case(name, size.net(), inputs)


def llama_decode(small: bool, size: LlamaSize = SMOLLM2, name: str = "llama_decode") -> Case:
    """One token into a static cache, in place; ``step`` moves the position and the capacity."""
    size = _TINY if small else size

    def inputs(seed: int, step: int) -> Inputs:
        shape = (1, size.kv_heads, size.capacity + step, size.head)
        cache = tuple((normal(seed + 2 * i + 1, *shape), normal(seed + 2 * i + 2, *shape)) for i in range(size.depth))
        return tokens(seed, size.vocabulary, 1, 1), torch.tensor([size.capacity // 2 + step]), cache

    return Case(name, size.net(), inputs)


ENTRIES = (
    Entry("bert_base", lambda small: _encoder("bert_base", small, 768, 12, 12, "cls")),
    Entry("minilm_l6", lambda small: _encoder("minilm_l6", small, 384, 6, 12, "mean")),
    Entry("gpt2_prefill", gpt2_prefill),
    Entry("gpt2_decode", gpt2_decode),
    Entry("llama_prefill", llama_prefill),
    Entry("llama_decode", llama_decode),
)
