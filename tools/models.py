"""Every model of the zoo, compiled against eager: time, error, coverage, first call.

    python tools/models.py                                  # full sizes, each in a process of its own
    python tools/models.py --small --dynamic --models bert_base,resnet50
    python tools/models.py --json models.json --markdown models.md

Columns: first call with an empty cache and in a second process (s); median of a call, ours and eager's, taken in
turn, with the quartiles of their ratio round by round; relative L2 error against float64 as a multiple of eager's;
share of FLOPs (torch's counter) in effc's kernels; compilations over three sizes with ``dynamic=True``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import zoo
from exactness import compare
from float64 import clone_tree
from rich.progress import track

from effc.cli.timing import race

#: Steps of the dynamic dimension; none makes it equal to another size at the first call, which torch would take for
#: the same.
_STEPS = (4, 6, 9)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model, in this process."""
    case = zoo.build(name, args.small)
    inputs = case.inputs(0, 0)
    compiled = torch.compile(case.module, backend=args.backend, dynamic=args.dynamic or None)
    with torch.no_grad(), _recording(args.backend) as recording:
        case.module(*clone_tree(inputs))  # so that the first call pays for the compiler, not for torch's own start
        start = time.perf_counter()
        compiled(*clone_tree(inputs))
        result: dict[str, Any] = {"model": name, "first_call": time.perf_counter() - start}
        if args.only_first:
            return result
        result |= _coverage(recording)
        if args.dynamic:
            result["compilations"] = _compilations(case, args.backend)
        comparison = compare(case.module, case.inputs(1, 0), compiled)
        result |= {"error_ratio": comparison.worst_ratio(), "problems": comparison.problems}
        result |= _times(case.module, compiled, inputs, args.seconds)
    return result


def _times(eager: Callable[..., Any], compiled: Callable[..., Any], inputs: Any, seconds: float) -> dict[str, float]:
    """Median seconds a call, and the median and quartiles of eager's time over ours, at least 5 rounds in turn."""
    arguments = clone_tree(inputs)
    rivals: dict[str, Callable[[], Any]] = {"eager": lambda: eager(*arguments), "ours": lambda: compiled(*arguments)}
    for warm_up in rivals.values():
        warm_up()
    rounds = []
    end = time.perf_counter() + seconds
    for taken in race(rivals, 10_000):
        rounds.append(taken)
        if len(rounds) >= 5 and time.perf_counter() > end:
            break
    low, middle, high = statistics.quantiles([r["eager"] / r["ours"] for r in rounds], n=4)
    return {
        "eager": statistics.median(r["eager"] for r in rounds),
        "ours": statistics.median(r["ours"] for r in rounds),
        "speedup": middle,
        "speedup_low": low,
        "speedup_high": high,
        "rounds": len(rounds),
    }


def _compilations(case: zoo.Case, backend: str) -> int:
    """Graphs compiled while a ``dynamic=True`` function meets ``_STEPS``; 1 where one serves all (and no graph
    breaks).
    """
    torch._dynamo.reset()
    counter = torch._dynamo.utils.counters
    counter.clear()
    compiled = torch.compile(case.module, backend=backend, dynamic=True)
    for step in _STEPS:
        compiled(*case.inputs(2, step))
    return int(counter["stats"]["unique_graphs"])


def _coverage(recording: Any) -> dict[str, Any]:
    if recording is None:
        return {}
    graphs = recording.graphs
    ours, aten = sum(g.flops_compiled for g in graphs), sum(g.flops_aten for g in graphs)
    fallbacks = sorted({f"{f.op}: {f.reason}" for g in graphs for f in g.fallbacks})
    phases: dict[str, float] = {}
    for g in graphs:
        for phase, seconds in g.phases.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    return {
        "coverage": ours / (ours + aten) if ours + aten else 0.0,
        "ops_compiled": sum(g.ops_compiled for g in graphs),
        "ops_aten": sum(len(g.fallbacks) for g in graphs),
        "fallbacks": fallbacks,
        "phases": phases,
    }


def _recording(backend: str) -> Any:
    if backend != "effc":
        import contextlib

        return contextlib.nullcontext()
    from effc.compiler.capture.recording import record

    return record()


def isolated(name: str, arguments: list[str], cache: str, timeout: float) -> dict[str, Any]:
    """``measure`` in a process of its own with its cache in ``cache``; a crash or a hang becomes ``problems``."""
    command = [sys.executable, "-P", __file__, "--one", name, *arguments]
    environment = os.environ | {"EFFC_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"model": name, "problems": [f"no result in {timeout:g} s"]}
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return {"model": name, "problems": [f"process ended with {done.returncode}: {''.join(last)}"]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def row(r: dict[str, Any]) -> list[str]:
    """One line of the table; what was not measured is a dash."""

    def number(key: str, form: str, factor: float = 1.0) -> str:
        return format(r[key] * factor, form) if key in r else "-"

    problems = r.get("problems", [])
    spread = f" ({r['speedup_low']:.2f}-{r['speedup_high']:.2f})" if "speedup" in r else ""
    return [
        r["model"],
        number("first_call", ".1f"),
        number("second_process", ".1f"),
        number("ours", ".2f", 1e3),
        number("eager", ".2f", 1e3),
        number("speedup", ".2f") + spread,
        number("error_ratio", ".2f"),
        number("coverage", ".1f", 100),
        number("compilations", ".0f"),
        "yes" if not problems else problems[0][:70],
    ]


HEAD = ["model", "first s", "warm s", "ms", "eager ms", "times faster", "error x", "FLOPs %", "graphs", "exact"]


def table(results: list[dict[str, Any]], markdown: bool) -> str:
    rows = [HEAD, *map(row, results)]
    if markdown:
        rows.insert(1, ["---"] * len(HEAD))
        return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(HEAD))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip() for cells in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="effc")
    parser.add_argument("--models", help=f"comma-separated, of: {', '.join(zoo.ENTRIES)}")
    parser.add_argument("--small", action="store_true", help="the sizes of the test suite")
    parser.add_argument("--dynamic", action="store_true", help="dynamic=True")
    parser.add_argument("--seconds", type=float, default=5.0, help="timing, a model")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a model may take")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # this model in this process; prints JSON
    parser.add_argument("--only-first", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args)))
        return 0
    names = args.models.split(",") if args.models else list(zoo.ENTRIES)
    arguments = ["--backend", args.backend, "--seconds", str(args.seconds)]
    arguments += [flag for flag in ("--small", "--dynamic") if getattr(args, flag[2:])]
    results = []
    for name in track(names, "models", transient=True):
        with tempfile.TemporaryDirectory(prefix="models-cache-") as cache:
            result = isolated(name, arguments, cache, args.timeout)
            if "first_call" in result:
                warm = isolated(name, [*arguments, "--only-first"], cache, args.timeout)
                result["second_process"] = warm.get("first_call", float("nan"))
        results.append(result)
        print(table([result], markdown=False).splitlines()[1], flush=True)
    print(table(results, markdown=False))
    if args.markdown:
        args.markdown.write_text(table(results, markdown=True) + "\n")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return int(any(r.get("problems") for r in results))


if __name__ == "__main__":
    sys.exit(main())
