"""The parts and selections of the OpInfo sweep's script."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path

import pytest

_PATH = Path(__file__).resolve().parents[1] / "tools" / "opinfo_sweep.py"
_SPEC = importlib.util.spec_from_file_location("opinfo_sweep", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
sweep = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sweep)

NAMES = ["add", "linalg.inv", "linalg.det", "mul", "special.i0"]


def test_the_parts_hold_every_op_once() -> None:
    parts = [sweep.part_of(NAMES, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(itertools.chain(*parts)) == sorted(NAMES)


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_a_wrong_part_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match="i/n with 1 <= i <= n"):
        sweep.part_of(NAMES, part)


def test_ops_are_selected_by_pattern_and_an_unknown_one_is_refused() -> None:
    assert sweep.selected(NAMES, "linalg.*,mul") == ["linalg.inv", "linalg.det", "mul"]
    with pytest.raises(ValueError, match=r"'linag\.\*'"):
        sweep.selected(NAMES, "mul,linag.*")


def test_only_results_of_the_same_run_are_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    run = {"backend": "effc", "limit": 2, "dtype": "float32"}
    lines = [{"op": op, **run, **other, "samples": [op]} for op, other in (("add", {}), ("mul", {"dtype": "int64"}))]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"op": "sub", "back')
    assert sweep.load(path, run) == {"add": ["add"]}
