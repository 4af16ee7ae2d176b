"""Attention by tile registers, against float64: sizes around those of tiles and blocks, and eager's results where they are not finite.

Each test runs by emulation and natively (`amx_machine`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from amx_emulator import Emulator
from amx_machine import AMX, WAYS, needs_vectors, tile_registers
from kernels import HOST, Kernel
from test_attention_kernel import attention_spec, check
from torch.nn.functional import scaled_dot_product_attention

from effc.compiler.codegen.cpu.attention.amx.stack import blocking
from effc.compiler.codegen.cpu.attention.form import STACK_BYTES
from effc.compiler.codegen.cpu.attention.softmax import Softmax
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.text import PTR, Builder
from effc.compiler.ir.expr import const, var
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.elf import load

pytestmark = needs_vectors


@dataclass
class Machine:
    """Where kernels run: the CPU, or ``emulator`` for its tile instructions."""

    emulator: Emulator | None

    def kernel(self, spec: KernelSpec) -> Kernel:
        kernel = Kernel(spec, AMX, self.emulator.rewrite if self.emulator else None)
        assert "tdpbf16ps" in kernel.text
        return kernel


@pytest.fixture(params=WAYS)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with tile_registers(request.param) as emulator:
        yield Machine(emulator)


def bf16_spec(*sizes: int | str, **options: object) -> KernelSpec:
    return attention_spec(sizes, dtype="bf16", logsumexp=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [(64, 64), (32, 48), (96, 16), (128, 128)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_lengths_known_only_at_run_time(channels: tuple[int, int], causal: bool, machine: Machine) -> None:
    spec = bf16_spec("s0", 2, "s1", "s2", *channels, causal=causal)
    runner = machine.kernel(spec)
    for q, k in ((1, 1), (1, 200), (2, 13), (16, 16), (17, 31), (31, 33), (32, 128), (33, 129), (65, 70), (150, 100)):
        check(spec, runner, threads=2, s0=1, s1=q, s2=k)


@pytest.mark.parametrize("queries", [5, 15, 16, 17, 31, 33, 64, 67, 130])
@pytest.mark.parametrize("keys", [1, 31, 64, 65, 141])
def test_lengths_known_before(queries: int, keys: int, machine: Machine) -> None:
    spec = bf16_spec(1, 2, queries, keys, 64, 32)
    check(spec, machine.kernel(spec), threads=2)


@pytest.mark.parametrize("queries", [7, 40, 130])
@pytest.mark.parametrize(
    "options", [{"group": 3}, {"group": 3, "causal": True}, {"causal": True}, {"heads_last": True}], ids=str
)
def test_forms(options: dict[str, object], queries: int, machine: Machine) -> None:
    spec = bf16_spec(2, 6, queries, 75, 32, 32, **options)
    for threads in (1, 2, 3):
        check(spec, machine.kernel(spec), threads=threads)


@pytest.mark.parametrize("kind", ["bf16", "f32", "i1"])
@pytest.mark.parametrize("strides", [(0, 0, 1, 40), (75, 0, 0, 1), (6000, 3000, 75, 1), (0, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_masks_of_any_placement(strides: tuple[int, ...], kind: str, causal: bool, machine: Machine) -> None:
    spec = bf16_spec(2, 2, 40, 75, 32, 32, mask=kind, mask_strides=strides, causal=causal)
    check(spec, machine.kernel(spec), threads=2)


def bf16_tensors(queries: int, keys: int, channels: int = 32) -> tuple[torch.Tensor, ...]:
    """q, k, v and a poisoned result, of one batch and two heads."""
    q, k, v = (torch.randn(1, 2, n, channels).bfloat16() for n in (queries, keys, keys))
    return q, k, v, torch.full_like(q, float("nan"))


def test_without_keys_all_is_zero(machine: Machine) -> None:
    q, k, v, out = bf16_tensors(5, 0)
    lse = torch.full((1, 2, 5), float("nan"))
    machine.kernel(bf16_spec(1, 2, 5, "s0", 32, 32))([q, k, v, out, lse], [0])
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.zeros_like(lse))


def test_without_queries_nothing_is_written(machine: Machine) -> None:
    q, k, v, out = bf16_tensors(5, 7)
    lse = torch.full((1, 2, 5), float("nan"))
    machine.kernel(bf16_spec(1, 2, "s0", 7, 32, 32))([q, k, v, out, lse], [0])
    assert out.isnan().all()
    assert lse.isnan().all()


def test_a_query_that_sees_nothing_gives_zero_as_torch_does(machine: Machine) -> None:
    q, k, v, out = bf16_tensors(20, 70)
    mask = torch.rand(20, 70) > 0.3
    mask[::3] = False
    mask[:, 64:] = False  # the last block of keys of all of them
    spec = attention_spec((1, 2, 20, 70, 32, 32), dtype="bf16", mask="i1", mask_strides=(0, 0, 70, 1))
    machine.kernel(spec)([q, k, v, out, mask])
    assert torch.equal(out[:, :, ::3], torch.zeros_like(out[:, :, ::3]))
    expected = scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, scale=0.25)
    torch.testing.assert_close(out.float(), expected, rtol=8e-3, atol=8e-3)


@pytest.mark.parametrize("keys", [20, 100])
def test_nan_and_infinity_spread_as_in_torch(keys: int, machine: Machine) -> None:
    q, k, v, out = bf16_tensors(20, keys)
    q[0, 0, 0, 3] = float("nan")
    v[0, 1, 7, 2] = float("inf")
    v[0, 1, keys - 1, 3] = -float("inf")
    v[0, 0, 3, 5] = float("nan")
    machine.kernel(attention_spec((1, 2, 20, keys, 32, 32), dtype="bf16"))([q, k, v, out])
    expected = scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=0.25)
    torch.testing.assert_close(out.float(), expected, equal_nan=True, rtol=8e-3, atol=8e-3)


def test_scores_far_apart_and_a_maximum_that_comes_late(machine: Machine) -> None:
    """Weights from 1 down to what float32 cannot hold, the largest in the last block of keys."""
    q, k, v, out = bf16_tensors(33, 200)
    q *= 20
    k *= torch.linspace(0.1, 20, 200)[:, None]
    machine.kernel(attention_spec((1, 2, 33, 200, 32, 32), dtype="bf16"))([q, k, v, out])
    expected = scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=0.25)
    torch.testing.assert_close(out.double(), expected, rtol=8e-3, atol=8e-3)


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize(("queries", "keys"), [(128, 128), (64, 1000)])
def test_errors_are_those_of_eager(queries: int, keys: int, spread: float, machine: Machine) -> None:
    q, k, v, out = bf16_tensors(queries, keys, 64)
    q *= spread
    machine.kernel(attention_spec((1, 2, queries, keys, 64, 64), dtype="bf16"))([q, k, v, out])
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=0.25)
    eager = scaled_dot_product_attention(q, k, v, scale=0.25)
    ours, theirs = ((x.double() - exact).norm() / exact.norm() for x in (out, eager))
    assert ours <= max(1.1 * theirs, torch.finfo(torch.bfloat16).eps)


def test_what_lies_between_rows_and_behind_them_does_not_matter(machine: Machine) -> None:
    """Rows of 32 channels, 51 apart, after 3 others: NaN in between reaches nothing, nor is it written; nothing beyond the last is read."""
    queries, keys, apart = 35, 45, 51
    spec = attention_spec((1, 1, queries, keys, 32, 32), dtype="bf16")
    attributes = dict(spec.attributes)
    for name, dim in (("q", "d2"), ("k", "d3"), ("v", "d3"), ("out", "d2")):
        channel = "d4" if name in "qk" else "d5"
        attributes[name] = var(dim) * const(apart) + var(channel) + const(3)
    spec = replace(spec, attributes=tuple(sorted(attributes.items())))
    spaces, views = [], []
    for rows in (queries, keys, keys, queries):
        space = torch.full((3 + rows * apart + 4096,), float("nan"), dtype=torch.bfloat16)
        view = space.as_strided((rows, 32), (apart, 1), 3)
        view.copy_(torch.randn(rows, 32))
        spaces.append(space)
        views.append(view)
    q, k, v, out = views
    assert machine.kernel(spec)(spaces, threads=2) == 0
    expected = scaled_dot_product_attention(q.float()[None], k.float()[None], v.float()[None], scale=0.25)[0]
    torch.testing.assert_close(out.float(), expected, rtol=8e-3, atol=8e-3)
    out.fill_(float("nan"))
    assert spaces[3].isnan().all()
    if machine.emulator is not None:
        for space, view in zip(spaces, views, strict=True):
            first, end = view[-1].data_ptr() + 64, space.data_ptr() + 2 * space.numel()
            assert not [(lo, hi) for lo, hi in machine.emulator.loads if lo < end and hi > first]


def test_each_thread_configures_and_releases_its_own_tiles() -> None:
    emulator = Emulator()
    spec = bf16_spec(1, 4, 128, 128, 32, 32)
    check(spec, Machine(emulator).kernel(spec), threads=2)
    emulator.check()
    assert len(emulator.threads) == 2
    assert emulator.counts["_configure"] == emulator.counts["_release"] == 2


def test_heads_of_a_group_share_what_is_packed() -> None:
    """k and v are read before the first product, and not again for the other heads."""
    q, k, v, out = (torch.randn(1, h, n, 32).bfloat16() for h, n in ((4, 32), (1, 40), (1, 40), (4, 32)))
    expected = scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=0.25, enable_gqa=True)

    class Poisoning(Emulator):
        def _store(self, number: int, pointer: int, stride: int) -> None:
            for tensor in (k, v):
                tensor.fill_(float("nan"))
            super()._store(number, pointer, stride)

    emulator = Poisoning()
    Machine(emulator).kernel(attention_spec((1, 4, 32, 40, 32, 32), dtype="bf16", group=4))([q, k, v, out])
    emulator.check()
    assert k.isnan().all()
    torch.testing.assert_close(out.float(), expected, rtol=8e-3, atol=8e-3)


@pytest.mark.parametrize(
    ("options", "sizes", "tiles"),
    [
        ({"dtype": "bf16"}, (1, 2, 5, 64, 64, 64), True),
        ({"dtype": "bf16", "heads_last": True}, (1, 2, "s0", "s1", 32, 16), True),
        ({"dtype": "bf16"}, (1, 2, 4, 64, 64, 64), False),  # few queries: keys are read once, by rows
        ({"dtype": "bf16"}, (1, 2, 64, 64, 48, 48), False),  # channels of q and k that do not fill rows
        ({"dtype": "bf16"}, (1, 2, 64, 64, 32, 24), False),
        ({"dtype": "bf16"}, (1, 2, 64, 64, 256, 256), False),  # too much for the stack
        ({"dtype": "bf16", "turned": True}, (1, 2, 64, 64, 64, 64), False),  # channels that are not contiguous
        ({"dtype": "f32"}, (1, 2, 64, 64, 64, 64), False),
        ({"dtype": "f16"}, (1, 2, 64, 64, 64, 64), False),
    ],
    ids=str,
)
def test_tiles_are_taken_where_tensors_lie_as_they_need(
    options: dict[str, object], sizes: tuple[int | str, ...], tiles: bool
) -> None:
    spec = attention_spec(sizes, **options)  # type: ignore[arg-type]
    assert ("tdpbf16ps" in Kernel(spec, AMX, rewrite=str).text) == tiles
    without = replace(HOST, name="without", features=HOST.features - {"amx_bf16"})
    assert "tdpbf16ps" not in Kernel(spec, without).text


def test_powers_of_two_are_within_three_ulp() -> None:
    b = Builder()
    with b.function("k_exp2", [PTR, PTR]) as (source, target):
        b.store(Softmax(b, HOST, "f32").exp2(b.load(source, "vector<16xf32>")), target)
    loaded = load(compile_object(b.text(), HOST))
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(loaded.symbols["k_exp2"])

    def exp2(values: torch.Tensor) -> torch.Tensor:
        found = torch.empty_like(values)
        for i in range(0, len(values), 16):
            function(values[i:].data_ptr(), found[i:].data_ptr())
        return found

    x = -torch.cat([torch.rand(16000) * 126, torch.rand(16000), torch.arange(112.0), torch.tensor([126.0, 1e-30] * 8)])
    exact = torch.exp2(x.double())
    ulp = torch.exp2(exact.log2().floor() - 23)
    assert ((exp2(x).double() - exact).abs() / ulp).max() < 3
    special = torch.tensor([-126.01, -1e30, -torch.inf, torch.nan] * 4)
    torch.testing.assert_close(exp2(special), torch.tensor([0, 0, 0, torch.nan] * 4), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("blocks", [None, 1, 7])
@pytest.mark.parametrize("channels", [(32, 16), (32, 32), (64, 64), (96, 96), (128, 128), (192, 128)], ids=str)
def test_blocks_fit_the_stack(channels: tuple[int, int], blocks: int | None) -> None:
    chosen = blocking(channels, blocks)
    assert chosen is not None
    assert chosen.total_bytes <= STACK_BYTES
    assert chosen.run <= (blocks or chosen.run)
