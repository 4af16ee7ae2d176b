"""``scaled_dot_product_attention`` inside a compiled model runs in one kernel and equals eager's."""

from __future__ import annotations

import pytest
import torch
from exactness import assert_exact
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class SelfAttention(nn.Module):
    """Heads split from one projection, as in GPT-2 and ViT."""

    def __init__(self, causal: bool, kv_heads: int) -> None:
        super().__init__()
        self.causal, self.kv_heads = causal, kv_heads
        self.project = nn.Linear(64, (4 + 2 * kv_heads) * 16)
        self.out = nn.Linear(64, 64)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, _ = x.shape
        heads = self.project(x).view(batch, length, -1, 16).transpose(1, 2)
        q, k, v = heads.split([4, self.kv_heads, self.kv_heads], dim=1)
        y = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal, enable_gqa=self.kv_heads != 4)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, length, 64))
        return x + out


@pytest.mark.parametrize("kind", ["plain", "causal", "bool mask", "float mask"])
def test_inside_a_model(kind: str) -> None:
    torch.manual_seed(0)
    model = SelfAttention(kind == "causal", 4).eval()
    x, mask = torch.randn(2, 37, 64), None
    if "mask" in kind:
        mask = torch.rand(2, 1, 1, 37) > 0.3
        mask = mask if kind == "bool mask" else torch.zeros(2, 1, 1, 37).masked_fill(~mask, -torch.inf)
    compiled = torch.compile(model, backend="effc", options={"fallback": "error"})
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, mask), model(x, mask), rtol=1e-5, atol=1e-5)


def test_lengths_known_only_at_run_time() -> None:
    model = SelfAttention(True, 4).eval()
    compiled = torch.compile(model, backend="effc", dynamic=True)
    with torch.no_grad():
        for length in (5, 64, 33):
            x = torch.randn(1, length, 64)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_table_of_biases_is_read_along_the_keys() -> None:
    """As in Swin: gathered from a parameter, heads innermost."""

    class Biased(nn.Module):
        index: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(60, 3))
            self.register_buffer("index", torch.randint(60, (20, 20)))

        def forward(self, x: Tensor) -> Tensor:
            bias = self.table[self.index].permute(2, 0, 1)[None]
            return scaled_dot_product_attention(x, x, x, attn_mask=bias)

    model, x = Biased().eval(), torch.randn(2, 3, 20, 16)
    compiled = torch.compile(model, backend="effc", options={"fallback": "error"})
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
        model.table.mul_(2)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [(1, 1), (8, 8), (96, 96), (256, 256), (64, 24)], ids=str)
@pytest.mark.parametrize("queries", [1, 50])
def test_head_sizes_are_as_exact_as_eager(channels: tuple[int, int], queries: int) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v)

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 3, n, c) for n, c in ((queries, channels[0]), (50, channels[0]), (50, channels[1])))
    with torch.no_grad():
        assert_exact(attend, (q, k, v), torch.compile(attend, backend="effc", dynamic=False))
