"""Which tiling is kept when code needs more than a GPU has: by what the compiler says of each, which here a stand-in says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from gpu_cases import linear, softmax
from gpu_interpreted import SM80, TMA
from gpu_pairs import PairCase

from effc.compiler.codegen.gpu import fitting
from effc.compiler.codegen.gpu.compile import Compiled
from effc.compiler.codegen.gpu.contraction import schedule
from effc.compiler.codegen.gpu.contraction.roles import Roles, find
from effc.compiler.codegen.gpu.contraction.schedule import Tiling, candidates
from effc.compiler.codegen.gpu.emit import emit
from effc.compiler.codegen.gpu.launch import Launch
from effc.compiler.codegen.gpu.pair import schedule as pairs
from effc.compiler.codegen.gpu.pair.reading import Pair, read_pair
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec, Schedule

LINEAR = linear(512, 512, 512, "f16")


def offers() -> list[Schedule]:
    roles = find(LINEAR)
    assert isinstance(roles, Roles)
    return candidates(roles, SM80, 4)


def kept(frames: list[int | None], spec: KernelSpec, patch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Which of the tilings is taken where each one's first kernel spills so many bytes, or (None) is refused; and how many were tried."""
    says: Iterator[int | None] = iter(frames)
    tried: list[str] = []

    def compile_launch(launch: Launch, target: GpuTarget) -> Compiled:
        if launch.name.endswith("_sum"):
            return Compiled(b"", "", launch.name, launch.warps, 0, 32, 0, ())
        tried.append(launch.text)
        frame = next(says)
        if frame is None:
            raise LoweringError(f"tiling {len(tried)} needs too much")
        return Compiled(b"", "", launch.name, launch.warps, 0, 32, frame, ())

    patch.setattr(fitting, "compile_launch", compile_launch)
    emitted, _ = fitting.compile_fitting(spec, SM80, aligned=True)
    return tried.index(emitted.launches[0].text), len(tried)


@pytest.mark.parametrize(
    ("frames", "taken", "tried"),
    [
        ([0], 0, 1),
        ([16, 0], 1, 2),
        ([None, 0], 1, 2),
        ([64, 16, None, 32], 1, 4),
        ([None, None, None, 8], 3, 4),
    ],
)
def test_the_first_that_fits_else_the_least_spilling(
    frames: list[int | None], taken: int, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(offers()) == 4
    assert kept(frames, LINEAR, monkeypatch) == (taken, tried)


def test_descriptors_that_triton_refuses_give_way_to_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def compile_launch(launch: Launch, target: GpuTarget) -> Compiled:
        tried.append("tt.make_tensor_descriptor" in launch.text)
        if tried[-1]:
            raise LoweringError("an unknown operation")
        return Compiled(b"", "", launch.name, launch.warps, 0, 32, 0, ())

    monkeypatch.setattr(fitting, "compile_launch", compile_launch)
    emitted, _ = fitting.compile_fitting(LINEAR, TMA, aligned=True)
    assert tried[0]
    assert "tt.make_tensor_descriptor" not in emitted.launches[0].text


def test_where_none_fits_the_first_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoweringError, match="tiling 1 needs too much"):
        kept([None] * 4, LINEAR, monkeypatch)


def test_a_schedule_of_the_specs_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept([16], replace(LINEAR, schedule=offers()[2]), monkeypatch) == (0, 1)


def test_other_templates_have_one_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept([16], softmax(64, 1000), monkeypatch) == (0, 1)


PAIR = PairCase(8192, 1024, 64, 1024, "f16").spec()


def test_pairs_that_spill_in_every_tiling_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each product alone need not; one of the tilings that does not is enough, and a schedule of the pair's own is kept."""
    with pytest.raises(LoweringError, match="spill registers in every tiling, 8 bytes a thread in the best"):
        kept([64, 8, None, 16], PAIR, monkeypatch)
    assert kept([64, None, 0], PAIR, monkeypatch) == (2, 3)
    pair = read_pair(PAIR)
    assert isinstance(pair, Pair)
    (own,) = pairs.candidates(pair, SM80, 1)
    assert kept([16], replace(PAIR, schedule=own), monkeypatch) == (0, 1)


def test_without_aligned_memory_no_tiling_is_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor of programs that take tile after tile, which pay with descriptors alone; so all that are tried differ."""
    tried: list[str] = []

    def compile_launch(launch: Launch, target: GpuTarget) -> Compiled:
        if not launch.name.endswith("_sum"):
            tried.append(launch.text.replace(launch.name, ""))
        return Compiled(b"", "", launch.name, launch.warps, 0, 32, 16, ())

    monkeypatch.setattr(fitting, "compile_launch", compile_launch)
    spec = linear(8192, 8192, 4096, "f16")
    fitting.compile_fitting(spec, TMA, aligned=True)
    assert any("tt.get_num_programs" in text for text in tried)
    tried.clear()
    fitting.compile_fitting(spec, TMA, aligned=False)
    assert len(set(tried)) == len(tried) > 1
    assert not any("tt.get_num_programs" in text for text in tried)


def test_fewer_programs_at_once_than_counted_are_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are compiled too, and the fastest by what each holds is taken."""
    roles = find(LINEAR)
    assert isinstance(roles, Roles)
    held: list[int] = []

    def compile_launch(launch: Launch, target: GpuTarget) -> Compiled:
        if not launch.name.endswith("_sum"):
            held.append(0 if not held else 4)
        registers = 255 if held[-1] == 0 else 32  # of 16 warps: none fits, or four
        return Compiled(b"", "", launch.name, 16, 0, registers, 0, ())

    monkeypatch.setattr(fitting, "compile_launch", compile_launch)
    monkeypatch.setattr(schedule, "together", lambda roles, target, tiling: 4)
    emitted, _ = fitting.compile_fitting(LINEAR, SM80, aligned=True)
    tilings = [Tiling(**dict(offer.parameters)) for offer in offers()[: len(held)]]  # type: ignore[arg-type]
    counts = [schedule.cost(roles, SM80, t, h) for t, h in zip(tilings, held, strict=True)]
    wanted = replace(LINEAR, schedule=offers()[counts.index(min(counts))])
    assert len(held) == 2
    assert emitted.launches[0].text == emit(wanted, SM80).launches[0].text.replace(
        f"k_{wanted.digest()}", emitted.launches[0].name
    )
