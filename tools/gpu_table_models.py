"""The rows of ``gpu_tables.py`` that are programs of their own: the tests that need a GPU, and ``effc bench --device cuda``."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from gpu_table_kept import Found

TESTS = "test_gpu_on_device.py"
_FOLDER = Path(__file__).parent.parent / "tests"
_NAMES = ("bert_base", "vit_base", "resnet50", "convnext_tiny", "llama_1b_prefill", "llama_1b_decode")
#: Model and systems by the name of the row; what takes longest to compile comes last.
MODELS: dict[str, tuple[str, str]] = {
    **{f"{name}, compiled": (name, "eager,inductor,effc") for name in _NAMES},
    "llama_1b_decode, weights of few bits": ("llama_1b_decode", "effc,effc-int8,effc-int4,torchao-int8,torchao-int4"),
    **{f"{name}, tuned": (name, "eager,inductor-max-autotune,effc") for name in _NAMES},
}


def measured(row: str, folder: Path, seconds: float) -> Found:
    """`TESTS`, or a row of `MODELS`, in about so many seconds; RuntimeError: nothing was found."""
    return _tests(folder / "tests.txt", seconds) if row == TESTS else _model(row, folder / f"{row}.json", seconds)


def _tests(file: Path, seconds: float) -> Found:
    """How many ended how in that time."""
    with file.open("w") as out, contextlib.suppress(subprocess.TimeoutExpired):
        command = [sys.executable, "-P", "-m", "pytest", str(_FOLDER / TESTS), "-v"]
        subprocess.run(command, check=False, stdout=out, stderr=out, timeout=seconds)
    counts = Counter(re.findall(r"::.* (PASSED|FAILED|SKIPPED|ERROR)", file.read_text()))
    if not counts:
        raise RuntimeError(f"pytest ran no test: {file} says why")
    return Found({}, {word.lower(): float(count) for word, count in counts.items()})


def _model(row: str, file: Path, seconds: float) -> Found:
    name, systems = MODELS[row]
    patience = f"{seconds / (1 + systems.count(',')):.0f}"
    asked = f"bench --device cuda --dtype bfloat16 --rounds 5 --models {name} --systems {systems} --timeout {patience}"
    code = "import sys; from effc.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-P", "-c", code, *asked.split(), "--json", str(file)], check=False)
    if not file.exists():
        raise RuntimeError("effc bench measured nothing: the log says why")
    return found_in(file)


def found_in(file: Path) -> Found:
    """The only measurement of ``effc bench --json``; RuntimeError: no system ran."""
    (measurement,) = json.loads(file.read_text())["measurements"]
    ran = [o for o in measurement["outcomes"] if o["status"] == "ok"]
    if not ran:
        raise RuntimeError("; ".join(f"{o['system']}: {o['reason']}" for o in measurement["outcomes"]))
    times = {o["system"]: 1e6 * o["latency"]["median"] for o in ran}
    return Found(times, {f"roofline, {o['system']}": o["share"] for o in ran if o["system"] == "effc"})
