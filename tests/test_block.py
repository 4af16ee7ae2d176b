"""Blocks of rows in one kernel equal float64's, whatever the sizes and threads; where the compiler makes them, and where not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from amx_machine import AMX, WAYS, needs_vectors, tile_registers
from block_rows import BETWEEN, CONSTANTS, FIRST, RESULT, Pair, pair
from exactness import assert_exact
from kernels import HOST
from torch import Tensor, nn

from effc.compiler.capture import record
from effc.compiler.capture.kernel_reference import evaluate
from effc.compiler.codegen.cpu.block.choice import Block, block_of
from effc.compiler.codegen.cpu.contraction import amx_form
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.program import Program
from effc.compiler.ir.site import sites_of
from effc.compiler.ir.spec import KernelSpec


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch._dynamo.reset()
    torch.manual_seed(5)


# -- kernels --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("m", [2, 13, 31, 97, 300])
@pytest.mark.parametrize(("k", "r", "n"), [(33, 17, 50), (64, 24, 64), (16, 48, 3), (7, 160, 129)])
def test_known_numbers_of_rows(m: int, k: int, r: int, n: int) -> None:
    product = Pair(m, k, r, n)
    for threads in (1, 2, 3):
        product.check(threads=threads)


def test_avx2() -> None:
    Pair(97, 33, 17, 50, target=Target.named("avx2")).check(threads=2)


@needs_vectors
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("m", [3, 16, 33, 65, 100, 500])
def test_tile_registers(way: str, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last unit of rows begins among those of the one before, whose intermediate may be another thread's."""
    monkeypatch.setattr(amx_form, "pays", lambda nest: True)
    with tile_registers(way) as emulator:
        product = Pair(m, 96, 40, 70, "bf16", AMX, emulator.rewrite if emulator else None)
        assert "tile" in product.kernel.text
        for threads in (1, 2, 3):
            product.check(threads=threads)


def test_bfloat16_by_vectors() -> None:
    Pair(97, 33, 17, 50, "bf16", replace(HOST, features=HOST.features - {"amx_bf16"})).check(threads=2)


def test_threads_do_not_change_the_bits() -> None:
    product = Pair(333, 64, 24, 64)
    x, residual = torch.randn(333, 64), torch.randn(333, 64)
    one = product(x, residual)
    assert all(torch.equal(one, product(x, residual, threads)) for threads in (2, 3, 5))


def test_nan_stays_in_its_row() -> None:
    product = Pair(200, 64, 24, 64)
    x, residual = torch.randn(200, 64), torch.randn(200, 64)
    x[77, 5] = float("nan")
    got = product(x, residual, threads=2).isnan()
    assert got[77].all()
    assert got.sum() == 64


def test_many_threads_have_memory_of_their_own() -> None:
    """More threads than have scratch memory may be asked for."""
    Pair(5000, 64, 24, 64).check(threads=40)


# -- what is no block -----------------------------------------------------------------------------------------------
def _other_columns(spec: KernelSpec) -> KernelSpec:
    """The second stage reads rows of another length."""
    wrong = pair(300, 64, 25, 64)
    return replace(spec, stages=(spec.stages[0], replace(wrong.stages[1], operands=spec.operands)))


@pytest.mark.parametrize(
    ("spec", "constants", "reason"),
    [
        (pair(1, 64, 24, 64), CONSTANTS, "a single row is not shared out among threads"),
        (pair(300, 64, 24, 64), [i for i in CONSTANTS if i != FIRST], "no factor of the contraction is constant"),
        (_other_columns(pair(300, 64, 24, 64)), CONSTANTS, "a stage reads other lines than the one before stores"),
    ],
)
def test_what_is_refused_says_why(spec: KernelSpec, constants: list[int], reason: str) -> None:
    assert block_of(spec, constants, HOST) == reason


def test_a_cpu_that_starts_one_multiply_add_takes_longer_for_products() -> None:
    """Two of 512 bits a cycle where bf16 is not multiplied by them, or is by tile registers; memory is the same."""
    two = Target.named("avx512")
    one = replace(two, features=two.features | {"avx512_bf16"})
    fast, slow = (block_of(pair(3136, 96, 32, 96), CONSTANTS, target) for target in (two, one))
    assert isinstance(fast, Block)
    assert isinstance(slow, Block)
    computing = [sum(work.compute for work in block.cost.stages) for block in (fast, slow)]
    assert 1.3 * computing[0] < computing[1] <= 2 * computing[0]
    bytes_of = [[(work.near, work.far, work.memory) for work in block.cost.stages] for block in (fast, slow)]
    assert bytes_of[0] == bytes_of[1]


def test_specs_survive_json_and_schedules_are_not_in_the_key() -> None:
    product = Pair(300, 64, 24, 64)
    spec = product.kernel.spec
    assert KernelSpec.from_json(spec.to_json()) == spec
    other = replace(spec.stages[1], schedule=replace(spec.stages[1].schedule, parameters=(("mr", 1),)))
    assert replace(spec, stages=(spec.stages[0], other)).key() == spec.key()
    assert spec.operands[BETWEEN].role == "scratch"


# -- models ---------------------------------------------------------------------------------------------------------
class Factors(nn.Module):
    """Low-rank factors with all that is fused into them."""

    def __init__(self, width: int, rank: int, out: int) -> None:
        super().__init__()
        self.right, self.left = nn.Linear(width, rank, bias=False), nn.Linear(rank, out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.left(self.right(x))) + 1


def run(model: nn.Module, x: Tensor, **options: Any) -> tuple[Any, Program]:
    """The compiled model, and its program."""
    fast: Any = torch.compile(model.eval(), backend="effc", options={"check": True, "fallback": "error", **options})
    with torch.no_grad(), record() as recording:
        fast(x)
    ((program, _),) = recording.programs
    return fast, program


def blocks(program: Program) -> int:
    return sum(program.kernels[call.kernel].template == "block" for call in program.calls)


@pytest.mark.parametrize(("batch", "rows"), [(4, 196), (1, 509)])
def test_factors(batch: int, rows: int) -> None:
    model, x = Factors(64, 24, 80), torch.randn(batch, rows, 70)[..., 3:67]
    fast, program = run(model, x)
    assert blocks(program) == len(program.calls) == 1
    assert_exact(model, (x,), fast)


def test_factors_of_the_low_rank_pass() -> None:
    model, x = nn.Sequential(nn.Linear(128, 128), nn.ReLU()), torch.randn(800, 128)
    _, program = run(model, x, passes={"low_rank": {"rank": 32}})
    assert blocks(program) == len(program.calls) == 1
    (site,) = sites_of([(program, {})])
    assert len(site.params) == 2, "a plan compresses both factors together"
    assert site.flops == 2 * 800 * 2 * 128 * 32


def test_pointwise_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 48, 1), nn.BatchNorm2d(48), nn.ReLU6(),
        nn.Conv2d(48, 48, 3, padding=1, groups=48),
    ).eval()  # fmt: skip
    x = torch.randn(1, 16, 41, 37)
    fast, program = run(model, x)
    assert blocks(program) == 1
    assert_exact(model, (x,), fast)


class Skipped(nn.Module):
    """What lies between is added behind the second product too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        between = self.first(x)
        result: Tensor = self.second(between) + between
        return result


def test_what_lies_between_may_be_read_twice_within_the_block() -> None:
    model, x = Skipped(), torch.randn(800, 64)
    fast, program = run(model, x)
    assert blocks(program) == len(program.calls) == 1
    assert_exact(model, (x,), fast)


@pytest.mark.parametrize(("model", "shape"), [(Factors(64, 24, 80), (32, 64)), (Factors(768, 288, 768), (800, 768))])
def test_where_it_does_not_pay(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    fast, program = run(model, x)
    assert blocks(program) == 0
    assert_exact(model, (x,), fast)


def test_the_reference_of_a_kernel_runs_its_stages() -> None:
    """``check`` repeats a block on the memory that it read."""
    product = Pair(60, 33, 17, 50)
    x, residual = torch.randn(60, 33), torch.randn(60, 50)
    memory = [x, product.a, product.p, product.b, product.q, torch.zeros(60 * 50), residual, torch.zeros(1)]
    found = evaluate(product.kernel.spec, [m.flatten() for m in memory], [], wide=True)
    assert found is not None
    assert list(found) == [RESULT]
    expected = (x.double() @ product.a.double().T + product.p).relu() @ product.b.double().T + product.q + residual
    torch.testing.assert_close(found[RESULT].view(60, 50), expected, rtol=1e-12, atol=1e-12)
