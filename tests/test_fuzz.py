"""Random graphs with fixed seeds (``tools/fuzz.py`` runs more), and the fuzzer's own parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import float64
import pytest
import torch
from fuzz.check import check
from fuzz.generate import generate
from fuzz.inputs import LAYOUTS, tensor
from fuzz.program import Input, Program, Statement, load
from fuzz.shrink import shrink
from isolated import Worker, WorkerDied

STATIC = range(24)
DYNAMIC = range(6)


@pytest.mark.parametrize("seed", STATIC)
def test_static(seed: int) -> None:
    source = generate(seed).source()
    outcome = check(source, seed, "effc")
    assert not outcome.failed, f"{outcome.detail}\n{source}"


@pytest.mark.parametrize("seed", DYNAMIC)
def test_dynamic(seed: int) -> None:
    source = generate(seed, dynamic=True).source()
    outcome = check(source, seed, "effc", dynamic=True)
    assert not outcome.failed, f"{outcome.detail}\n{source}"


def test_what_aotautograd_cannot_differentiate_is_skipped() -> None:
    """It saves for the backward an input that the program writes into."""
    source = Program(
        31291,
        (Input("x0", torch.float32, "(1,)"),),
        (
            Statement("F.logsigmoid(torch.log_softmax(x0, 0))", "v1"),
            Statement("x0.transpose(0, -1).add_(v1.transpose(0, -1))"),
        ),
        ("v1",),
    ).source()
    assert check(source, 31291, "effc", mode="train").status == "skipped"


def test_inputs_are_small() -> None:
    """Seed 30047 draws 64 x 64 x 64 x 64: minutes of comparing."""
    for seed in (30047, *range(30)):
        _, inputs = load(generate(seed, dynamic=seed % 2 == 0).source())
        assert all(t.numel() <= 20_000 for t in inputs(seed, 3)), seed


def test_same_seed_gives_the_same_program() -> None:
    assert generate(5).source() == generate(5).source() != generate(6).source()


def test_programs_reach_every_family() -> None:
    text = "\n".join(generate(seed).source() for seed in range(150))
    for family in (
        "@",
        ".sum(",
        "softmax",
        "conv2d",
        "transpose",
        "cat(",
        ".gather(",
        "where(",
        ".to(torch.",
        "_(",
        "[1:]",
    ):
        assert family in text, family
    for layout in (*LAYOUTS[1:], "special=True", "(0,", "bfloat16", "int64", "bool"):
        assert layout in text, layout


@pytest.mark.parametrize(
    ("layout", "test"),
    [
        ("transposed", lambda t: t.stride() == (1, 3, 15)),
        ("strided", lambda t: t.stride() == (50, 10, 2)),
        ("offset", lambda t: t.storage_offset() == 3),
        ("channels_last", lambda t: t.stride(1) == 1),
        ("expanded", lambda t: t.stride(0) == 0),
    ],
)
def test_layouts(layout: str, test: Callable[[torch.Tensor], bool]) -> None:
    value = tensor(1, torch.float32, (3, 5, 5), layout)
    assert value.shape == (3, 5, 5)
    assert test(value)


def test_shrinking_keeps_only_what_fails() -> None:
    """A made-up fault of ``tanh``: what is left computes that and no more."""
    program = next(p for p in map(generate, range(200)) if "tanh" in p.source() and len(p.statements) > 5)

    def fails(candidate: Program) -> bool:
        graph, inputs = load(candidate.source())
        float64.run(graph, inputs(candidate.seed, 0))  # still a valid program
        return "tanh" in candidate.source()

    small = shrink(program, fails)
    assert fails(small)
    assert len(small.statements) == 1
    assert len(small.inputs) == 1


def test_worker_survives_crashes_and_hangs(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, json, os, time\n"
        "for line in sys.stdin:\n"
        "    what = json.loads(line)['do']\n"
        "    if what == 'abort': os.abort()\n"
        "    if what == 'hang': time.sleep(60)\n"
        "    if what == 'raise': raise ValueError('odd')\n"
        "    print(json.dumps({'did': what}), json.dumps({'done': True}), sep='\\n', flush=True)\n"
    )
    worker = Worker(script)
    try:
        assert list(worker.answers({"do": "work"}, 30)) == [{"did": "work"}]
        with pytest.raises(WorkerDied, match="process ended with -6"):
            list(worker.answers({"do": "abort"}, 30))
        with pytest.raises(WorkerDied, match="ended with 1: ValueError: odd"):
            list(worker.answers({"do": "raise"}, 30))
        with pytest.raises(WorkerDied, match=r"no answer in 0\.5 s"):
            list(worker.answers({"do": "hang"}, 0.5))
        assert list(worker.answers({"do": "work"}, 30)) == [{"did": "work"}]
    finally:
        worker.stop()
