"""Products of two bf16 activations by tile registers, against float64: the kernel packs the right factor itself.

Each test runs by emulation and natively (`amx_machine`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from amx_emulator import Emulator
from amx_machine import AMX, WAYS, needs_vectors, tile_registers
from contraction_cases import Case, Runner

from effc.compiler.codegen.cpu.contraction import amx_form
from effc.compiler.codegen.cpu.contraction.form import form
from effc.compiler.codegen.cpu.contraction.roles import find

pytestmark = needs_vectors


@dataclass
class Machine:
    """Where kernels run: the CPU, or ``emulator`` for its tile instructions."""

    emulator: Emulator | None

    def runner(self, case: Case, kind: str = "amx_turned") -> Runner:
        runner = Runner(case, None, AMX, rewrite=self.emulator.rewrite if self.emulator else None)
        assert form_of(case) == kind
        return runner


@pytest.fixture(params=WAYS)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Takes tiles wherever they fit, also where they do not pay."""
    monkeypatch.setattr(amx_form, "pays", lambda nest: True)
    with tile_registers(request.param) as emulator:
        yield Machine(emulator)


def form_of(case: Case) -> str:
    nest = find(case.spec())
    assert not isinstance(nest, str), nest
    return form(nest, AMX)


def product(m: int | str, n: int, k: int, turned: bool, **more: object) -> Case:
    """``turned``: the right factor lies as ``[n][k]``."""
    right = (0, k, 1) if turned else (0, 1, n)
    return Case((m, n, k), 1, (k, 0, 1), right, (n, 1), dtype="bf16", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("k", [2, 31, 32, 33, 48, 129])
@pytest.mark.parametrize(("m", "n"), [(1, 16), (15, 17), (32, 32), (33, 31), (70, 48), (97, 100)])
def test_sizes_around_those_of_tiles(m: int, n: int, k: int, turned: bool, machine: Machine) -> None:
    runner = machine.runner(product(m, n, k, turned, bias=(0, 1), relu=True))
    for threads in (1, 2):
        runner.check(threads)


@pytest.mark.parametrize("turned", [False, True])
def test_rows_known_only_at_run_time(turned: bool, machine: Machine) -> None:
    runner = machine.runner(product("m", 48, 40, turned))
    for m in (0, 1, 2, 15, 16, 17, 33, 64, 65, 200):
        runner.check(2, m=m)


@pytest.mark.parametrize("turned", [False, True])
def test_sums_known_only_at_run_time(turned: bool, machine: Machine) -> None:
    """They come in blocks of 512, and 131 rows are more than wait together."""
    right = (0, "k", 1) if turned else (0, 1, 40)
    runner = machine.runner(Case((131, 40, "k"), 1, ("k", 0, 1), right, (40, 1), dtype="bf16"))
    for k in (0, 1, 2, 33, 511, 512, 513, 1025):
        runner.check(2, k=k)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 16, 900), (40, 17, 833), (270, 48, 1100)])
def test_sums_too_long_for_the_stack(m: int, n: int, k: int, turned: bool, machine: Machine) -> None:
    """900 elements come in steps of 30, of which 512 is no multiple."""
    runner = machine.runner(product(m, n, k, turned, bias=(0, 1), result="f32"))
    for threads in (1, 2):
        runner.check(threads)


@pytest.mark.parametrize("m", [1, 31, 65, 131])
@pytest.mark.parametrize("k", [40, 850])
def test_rows_that_two_units_compute_are_written_once(m: int, k: int, machine: Machine) -> None:
    """In place, a row that is written twice would have its addend added twice."""
    runner = machine.runner(product(m, 48, k, False, bias=(48, 1), result="f32"))
    for threads in (1, 2):
        runner.check(threads, in_place=True)


@pytest.mark.parametrize("columns", [9, 16, 40])
def test_columns_known_only_at_run_time(columns: int, machine: Machine) -> None:
    case = Case((33, "n", 40), 1, (40, 0, 1), (0, 40, 1), ("n", 1), dtype="bf16")
    machine.runner(case).check(2, n=columns)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batches(turned: bool, threads: int, machine: Machine) -> None:
    """Shares begin in the middle of a panel's rows, and at other batches."""
    b, m, n, k = 3, 70, 33, 40
    right = (n * k, 0, k, 1) if turned else (n * k, 0, 1, n)
    machine.runner(Case((b, m, n, k), 1, (m * k, k, 0, 1), right, (m * n, n, 1), dtype="bf16")).check(threads)


def test_rows_in_two_dimensions(machine: Machine) -> None:
    """The right factor is that of all ``b``, whose rows lie apart."""
    b, m, n, k = 3, 20, 33, 40
    left, out = (m * k + 7, k, 0, 1), (m * n + 5, n, 1)
    machine.runner(Case((b, m, n, k), 1, left, (0, 0, 1, n), out, dtype="bf16")).check(2)


@pytest.mark.parametrize("turned", [False, True])
def test_rows_apart_and_an_offset(turned: bool, machine: Machine) -> None:
    right = (0, 43, 1) if turned else (0, 1, 39)
    machine.runner(Case((35, 33, 40), 1, (51, 0, 1), right, (37, 1), dtype="bf16", offset=3)).check(2)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("k", [40, 850])
def test_what_lies_behind_the_factors_does_not_matter(k: int, turned: bool, machine: Machine) -> None:
    """850 is too long for one block of K."""
    m, n = 33, 20
    runner = machine.runner(product(m, n, k, turned))
    spaces = []
    for rows in (m, n):
        space = torch.full((rows * k + 4096,), float("nan"), dtype=torch.bfloat16)
        space[: rows * k] = torch.randn(rows * k)
        spaces.append(space)
    out = torch.full((m, n), float("nan"), dtype=torch.bfloat16)
    assert runner.kernel([*spaces, out]) == 0
    left, right = spaces[0][: m * k].view(m, k), spaces[1][: n * k]
    right = right.view(n, k).mT if turned else right.view(k, n)
    torch.testing.assert_close(out.double(), left.double() @ right.double(), rtol=4e-3, atol=1e-3)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row_or_column(special: float, turned: bool, machine: Machine) -> None:
    """The zeros that fill K and N meet no infinity."""
    m, n, k = 18, 17, 33
    x, y = torch.rand(m, k).bfloat16() + 1, torch.rand(n, k).bfloat16() + 1
    x[5, 32], y[16, 32] = special, special
    stored = y if turned else y.T.contiguous()
    out = torch.empty(m, n, dtype=torch.bfloat16)
    assert machine.runner(product(m, n, k, turned)).kernel([x, stored, out]) == 0
    torch.testing.assert_close(out, (x.double() @ y.double().T).bfloat16(), equal_nan=True)


@pytest.mark.parametrize("turned", [False, True])
def test_a_panel_is_packed_once_for_all_its_rows(turned: bool) -> None:
    """The right factor is not read again after the first sums of the only panel."""
    m, n, k = 100, 32, 40
    x, y = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
    stored, expected = y if turned else y.T.contiguous(), (x.double() @ y.double().T).bfloat16()

    class Poisoning(Emulator):
        def _store(self, number: int, pointer: int, stride: int) -> None:
            stored.fill_(float("nan"))
            super()._store(number, pointer, stride)

    emulator, out = Poisoning(), torch.empty(m, n, dtype=torch.bfloat16)
    Machine(emulator).runner(product(m, n, k, turned)).kernel([x, stored, out])
    emulator.check()
    assert stored.isnan().all()
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (product(128, 128, 64, False), "amx_turned"),
        (product(128, 128, 64, True), "amx_turned"),
        (product("m", 512, 512, False), "amx_turned"),
        (product(8, 512, 512, False), "amx_turned"),
        (product(1, 512, 512, False), "tiles"),  # packing costs more than it saves
        (product(1, 512, 512, True), "dots"),
        (product(128, 128, 3, False), "tiles"),
        (product(128, 128, 2000, False), "amx_turned"),
        (replace(product(128, 128, 64, False), dtype="f32"), "tiles"),
        (replace(product(128, 128, 64, False), dtype="f16"), "tiles"),
        (replace(product(128, 128, 64, False), lhs=(1, 0, 128)), "tiles"),  # a left factor whose K is not contiguous
        (replace(product(128, 128, 64, False), rhs=(0, 2, 300)), "turned"),  # a right factor of which nothing is
        (Case((128, 128, "k"), 1, ("k", 0, 1), (0, "k", 1), (128, 1), dtype="bf16"), "amx_turned"),
    ],
    ids=str,
)
def test_tiles_are_taken_where_they_are_less_work(case: Case, kind: str) -> None:
    assert form_of(case) == kind
    runner = Runner(case, None, AMX, rewrite=str)
    assert ("tdpbf16ps" in runner.kernel.text) == (kind == "amx_turned")
