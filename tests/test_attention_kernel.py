"""Attention kernels equal torch's scaled_dot_product_attention."""

from __future__ import annotations

import pytest
import torch
from kernels import Kernel
from torch.nn.functional import scaled_dot_product_attention

from effc.compiler.codegen.cpu.schedules import supports
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr, as_expr, const, floordiv, var
from effc.compiler.ir.spec import Dim, KernelSpec, Operand
from effc.runtime.dtypes import TORCH_DTYPES

D = [var(f"d{i}") for i in range(6)]


def attention_spec(
    sizes: tuple[int | str, ...],
    *,
    group: int = 1,
    causal: bool = False,
    dtype: str = "f32",
    mask: str = "",
    mask_strides: tuple[int | str, ...] = (),
    heads_last: bool = False,
    turned: bool = False,
    logsumexp: bool = False,
) -> KernelSpec:
    """``sizes``: batch, heads, queries, keys, channels of q and k, of v.

    ``heads_last``: [b, s, h, d] in memory; ``turned``: [b, h, d, s].
    """
    _, h, q, k, d, e = (as_expr(s) for s in sizes)
    kv_heads, kv_head = floordiv(h, as_expr(group)), floordiv(D[1], as_expr(group))

    def address(heads: Expr, head: Expr, length: Expr, at: Expr, width: Expr, channel: Expr) -> Expr:
        if heads_last:
            return ((D[0] * length + at) * heads + head) * width + channel
        if turned:
            return ((D[0] * heads + head) * width + channel) * length + at
        return ((D[0] * heads + head) * length + at) * width + channel

    attributes: dict[str, object] = {
        "q": address(h, D[1], q, D[2], d, D[4]),
        "k": address(kv_heads, kv_head, k, D[3], d, D[4]),
        "v": address(kv_heads, kv_head, k, D[3], e, D[5]),
        "out": address(h, D[1], q, D[2], e, D[5]),
        "scale": 0.25,
        "causal": int(causal),
        "group": group,
    }
    operands = [Operand(dtype, "read", const(1))] * 3 + [Operand(dtype, "write", const(1))]
    if mask:
        attributes["mask"] = sum((D[i] * as_expr(s) for i, s in enumerate(mask_strides)), const(0))
        operands.append(Operand(mask, "read", const(1)))
    if logsumexp:
        attributes["lse"] = (D[0] * h + D[1]) * q + D[2]
        operands.append(Operand("f64" if dtype == "f64" else "f32", "write", const(1)))
    kinds = ("parallel", "parallel", "parallel", "reduction", "reduction", "parallel")
    dims = tuple(Dim(as_expr(s), kind) for s, kind in zip(sizes, kinds, strict=True))
    symbols = tuple(sorted({v for s in sizes for v in as_expr(s).variables()}))
    return KernelSpec("attention", dims, tuple(operands), (), symbols, tuple(sorted(attributes.items())))


def check(spec: KernelSpec, runner: Kernel | None = None, threads: int = 1, **symbols: int) -> None:
    """Random inputs by the spec's own addresses, against float64."""
    runner = runner or Kernel(spec)
    b, h, q, k, d, e = (dim.size.evaluate(symbols) for dim in spec.dims)
    dtype = TORCH_DTYPES[spec.operands[0].dtype]
    kv_head = [(spec.get("k").evaluate({**symbols, **_point(d1=i)})) for i in range(h)]
    group = 1 + max(kv_head.count(x) for x in kv_head) - 1
    views = {}
    for name, sizes in (
        ("q", (b, h, q, d)),
        ("k", (b, h // group, k, d)),
        ("v", (b, h // group, k, e)),
        ("out", (b, h, q, e)),
    ):
        dims = {"q": "0124", "k": "0134", "v": "0135", "out": "0125"}[name]
        strides = [
            _stride(spec.get(name), f"d{dims[i]}", symbols, group if i == 1 and name in "kv" else 1) for i in range(4)
        ]
        memory = torch.randn(torch.Size(sizes).numel()).to(dtype)
        views[name] = memory.as_strided(sizes, strides)
    views["out"].fill_(float("nan"))
    tensors = [views[n] for n in ("q", "k", "v", "out")]
    mask = None
    if spec.get("mask") is not None:
        kind = spec.operands[4].dtype
        strides = [_stride(spec.get("mask"), f"d{i}", symbols, 1) for i in range(4)]
        extent = 1 + sum((s - 1) * t for s, t in zip((b, h, q, k), strides, strict=True))
        memory = torch.rand(extent) > 0.4 if kind == "i1" else torch.randn(extent).to(TORCH_DTYPES[kind])
        if kind != "i1":
            memory[torch.rand(extent) > 0.6] = -torch.inf
        mask = memory.as_strided((b, h, q, k), strides)
        tensors.append(memory)
    lse = None
    if spec.get("lse") is not None:
        lse = torch.full((b, h, q), float("nan"), dtype=TORCH_DTYPES[spec.operands[-1].dtype])
        tensors.append(lse)
    runner(tensors, [symbols[s] for s in spec.symbols], threads)
    key, value = (views[n].double().repeat_interleave(group, 1) for n in "kv")
    score = views["q"].double() @ key.mT * spec.get("scale")
    if mask is not None:
        score = score.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else score + mask.double()
    if spec.get("causal"):
        score = score.masked_fill(torch.ones(q, k, dtype=torch.bool).triu(1), -torch.inf)
    expected = score.softmax(-1).nan_to_num(0.0) @ value
    tolerance = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(views["out"].double(), expected, rtol=tolerance, atol=tolerance)
    if lse is not None:
        reference = torch.logsumexp(score, -1)
        reference[reference == -torch.inf] = 0
        torch.testing.assert_close(lse.double(), reference, rtol=1e-5, atol=1e-5)


def _point(**values: int) -> dict[str, int]:
    return {**{f"d{i}": 0 for i in range(6)}, **values}


def _stride(address: Expr, dim: str, symbols: dict[str, int], by: int) -> int:
    return address.evaluate({**symbols, **_point(**{dim: by})}) - address.evaluate({**symbols, **_point()})


@pytest.mark.parametrize("target", ["host", "avx2"])
@pytest.mark.parametrize("channels", [(64, 64), (16, 48), (5, 7), (80, 33)])
def test_every_length(channels: tuple[int, int], target: str) -> None:
    spec = attention_spec(("s0", 3, "s1", "s2", *channels), logsumexp=True)
    runner = Kernel(spec, Target.named(target))
    for q, k in ((1, 1), (1, 200), (2, 13), (16, 14), (17, 15), (31, 127), (33, 129), (65, 300)):
        check(spec, runner, threads=2, s0=2, s1=q, s2=k)


@pytest.mark.parametrize("queries", [1, 2, 7, 40])
@pytest.mark.parametrize("options", [{"group": 3}, {"causal": True}, {"heads_last": True}, {"turned": True}], ids=str)
def test_forms(options: dict[str, object], queries: int) -> None:
    spec = attention_spec((2, 6, queries, 45, 32, 32), logsumexp=True, **options)  # type: ignore[arg-type]
    check(spec, threads=2)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"mask": "f32", "mask_strides": (0, 0, 5000, 1)}], ids=str)
def test_threads_share_the_keys_of_a_head(options: dict[str, object], group: int) -> None:
    spec = attention_spec((1, 3, 2, "s0", 32, 48), group=group, logsumexp=True, **options)  # type: ignore[arg-type]
    runner = Kernel(spec)
    for keys, threads in ((1, 4), (4999, 1), (4999, 2), (5000, 4), (4097, 16), (640, 3)):
        check(spec, runner, threads=threads, s0=keys)


def test_states_too_large_to_split_leave_a_head_to_one_thread() -> None:
    check(attention_spec((2, 16, 3, 300, 64, 128), group=8, logsumexp=True), threads=2)


@pytest.mark.parametrize("queries", [17, 33, 48, 50])
@pytest.mark.parametrize("keys", [1, 5, 13, 29, 128, 141])
def test_the_last_queries_and_keys(queries: int, keys: int) -> None:
    check(attention_spec((1, 1, queries, keys, 16, 16), mask="f32", mask_strides=(0, 0, keys, 1), logsumexp=True))


@pytest.mark.parametrize("channels", [(64, 64), (32, 16), (16, 96)], ids=str)
@pytest.mark.parametrize("options", [{}, {"group": 2}, {"causal": True}, {"heads_last": True}], ids=str)
def test_bfloat16_rows_in_pairs(options: dict[str, object], channels: tuple[int, int]) -> None:
    spec = attention_spec((1, 4, 3, 75, *channels), dtype="bf16", logsumexp=True, **options)  # type: ignore[arg-type]
    check(spec, threads=2)


@pytest.mark.parametrize("queries", [1, 20])
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f64"])
def test_other_types(dtype: str, queries: int) -> None:
    check(attention_spec((1, 2, queries, 70, 32, 16), dtype=dtype, causal=queries > 1))


@pytest.mark.parametrize("queries", [1, 20])
@pytest.mark.parametrize("kind", ["f32", "i1"])
@pytest.mark.parametrize("strides", [(0, 0, 1, 40), (40, 0, 0, 1), (1600, 800, 40, 1)], ids=str)
def test_masks_of_any_placement(strides: tuple[int, ...], kind: str, queries: int) -> None:
    check(attention_spec((2, 2, queries, 40, 32, 32), mask=kind, mask_strides=strides, logsumexp=True))


@pytest.mark.parametrize("queries", [1, 5])
def test_a_query_that_sees_nothing_gives_zero_as_torch_does(queries: int) -> None:
    spec = attention_spec((1, 1, queries, 8, 16, 16), mask="i1", mask_strides=(0, 0, 8, 1))
    q, k, v = torch.randn(1, 1, queries, 16), torch.randn(1, 1, 8, 16), torch.randn(1, 1, 8, 16)
    mask = torch.zeros(queries, 8, dtype=torch.bool)
    out = torch.full_like(q, float("nan"))
    Kernel(spec)([q, k, v, out, mask])
    assert torch.equal(out, scaled_dot_product_attention(q, k, v, attn_mask=mask))
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("queries", [1, 5])
def test_nan_and_infinity_spread_as_in_torch(queries: int) -> None:
    spec = attention_spec((1, 2, queries, 20, 16, 16))
    q, k, v = torch.randn(1, 2, queries, 16), torch.randn(1, 2, 20, 16), torch.randn(1, 2, 20, 16)
    q[0, 0, 0, 3] = float("nan")
    v[0, 1, 7, 2] = float("inf")
    out = torch.zeros_like(q)
    Kernel(spec)([q, k, v, out])
    torch.testing.assert_close(
        out, scaled_dot_product_attention(q, k, v, scale=0.25), equal_nan=True, rtol=1e-5, atol=1e-5
    )


def test_unknown_channels_are_refused_with_the_reason() -> None:
    assert supports(attention_spec((1, 1, 4, 4, "s0", 16)), Target.host()) == "the number of channels is not known"
