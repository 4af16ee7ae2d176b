"""GPU kernels of attention, in the interpreter, against torch in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_interpreted import SM80, SM90, Kernel
from test_attention_kernel import attention_spec, check

from effc.compiler.codegen.gpu import attention
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec, Schedule


def run(spec: KernelSpec, **symbols: int) -> Kernel:
    kernel = Kernel(spec, SM90)
    check(spec, kernel, **symbols)  # type: ignore[arg-type]
    return kernel


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("channels", [(16, 16), (5, 7), (80, 33)])
def test_sizes_known_at_run_time(channels: tuple[int, int], dtype: str) -> None:
    spec = attention_spec(("s0", 3, "s1", "s2", *channels), dtype=dtype, logsumexp=True)
    kernel = Kernel(spec, SM90)
    for q, k in ((1, 1), (17, 15), (33, 129)):
        check(spec, kernel, s0=2, s1=q, s2=k)  # type: ignore[arg-type]


@pytest.mark.parametrize("queries", [1, 7, 40])
@pytest.mark.parametrize("options", [{"group": 3}, {"causal": True}, {"heads_last": True}, {"turned": True}], ids=str)
def test_forms(options: dict[str, object], queries: int) -> None:
    run(attention_spec((2, 6, queries, 45, 32, 32), logsumexp=True, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("queries", "keys"), [(70, 70), (129, 40), (20, 150)])
def test_causal_of_any_lengths(queries: int, keys: int) -> None:
    run(attention_spec((1, 2, queries, keys, 16, 16), causal=True, dtype="f16"))


@pytest.mark.parametrize("mask", ["i1", "f32", "bf16"])
@pytest.mark.parametrize("group", [1, 3])
def test_masks(mask: str, group: int) -> None:
    """One mask for all heads, as each row's own: rows that see nothing give zero."""
    strides = (7 * 50, 0, 50, 1)
    run(attention_spec((2, 3, 7, 50, 16, 16), mask=mask, mask_strides=strides, group=group, logsumexp=True))


def test_a_row_that_sees_nothing_may_give_nan() -> None:
    spec = attention_spec((1, 1, 2, 4, 16, 16), mask="i1", mask_strides=(0, 0, 4, 1))
    spec = replace(spec, attributes=tuple(sorted((*spec.attributes, ("nan", 1)))))
    q, k, v = torch.randn(2, 16), torch.randn(4, 16), torch.randn(4, 16)
    out, mask = torch.zeros(2, 16), torch.tensor([[True] * 4, [False] * 4])
    Kernel(spec)([q.reshape(-1), k.reshape(-1), v.reshape(-1), out.reshape(-1), mask.reshape(-1)])
    assert not out[0].isnan().any()
    assert out[1].isnan().all()


def test_decoding_shares_keys_among_heads_and_divides_them() -> None:
    """One query of each head: the rows of a program are the heads of a group, and each program has a part of the keys."""
    spec = attention_spec((2, 8, 1, 1100, 32, 24), group=4, dtype="f16")
    plan = attention.plan(spec, SM90)
    assert (plan.heads, plan.split) == (4, 4)
    assert len(run(spec).emitted.launches) == 2


def test_parts_without_keys_add_nothing() -> None:
    spec = attention_spec((1, 2, 1, 70, 16, 16), mask="i1", mask_strides=(0, 70, 70, 1))
    run(replace(spec, schedule=Schedule((("bn", 16), ("split", 8)))))


def test_a_logsumexp_is_of_all_keys() -> None:
    spec = attention_spec((1, 2, 1, 600, 16, 16), logsumexp=True)
    assert len(run(replace(spec, schedule=Schedule((("split", 4),)))).emitted.launches) == 1


def test_many_queries_take_one_head_a_program() -> None:
    plan = attention.plan(attention_spec((1, 8, 512, 512, 64, 64), group=4, dtype="f16"), SM90)
    assert (plan.heads, plan.split, plan.bm, plan.bn) == (1, 1, 128, 64)


def test_every_candidate_agrees() -> None:
    spec = attention_spec((1, 2, 70, 90, 32, 32), dtype="f16", causal=True)
    offered = attention.candidates(spec, SM80)
    assert len(offered) > 2
    for schedule in offered:
        run(replace(spec, schedule=schedule))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (attention_spec((1, 1, 4, 4, 512, 16)), "more than 256 channels"),
        (attention_spec((1, 1, 4, 4, 16, 16), dtype="f64"), "attention in f64"),
        (attention_spec((1, 1, 4, 4, "s0", 16)), "channels is not known"),
    ],
)
def test_what_there_is_no_kernel_for_says_why(spec: KernelSpec, reason: str) -> None:
    with pytest.raises(LoweringError, match=reason):
        Kernel(spec)
