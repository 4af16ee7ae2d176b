"""From the samples' verdicts to a class for each op, counts, and ranked reasons."""

from __future__ import annotations

from collections import Counter
from typing import Any

#: Classes of ops, in the order in which the table shows them.
CLASSES = (
    "compiled",
    "partly",
    "copies",
    "fallback",
    "ran",
    "mismatch",
    "inexact",
    "error",
    "crash",
    "torch",
    "skipped",
)
_BAD = ("crash", "error", "mismatch", "inexact")


def classify(verdicts: list[dict[str, Any]]) -> str:
    """An op's class: any bad sample decides; then samples with arithmetic; then copies."""
    statuses = {v["status"] for v in verdicts}
    for bad in _BAD:
        if bad in statuses:
            return bad
    arithmetic = statuses - {"copies", "skipped", "torch"}
    if not arithmetic:
        return next((s for s in ("copies", "torch") if s in statuses), "skipped")
    return arithmetic.pop() if len(arithmetic) == 1 else "partly"


def summary(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """``counts`` by class, ``ops`` by class, ``reasons`` ranked by the number of ops that they touch, ``failures``."""
    ops: dict[str, list[str]] = {c: [] for c in CLASSES}
    reasons: Counter[tuple[str, str]] = Counter()
    failures = []
    for name, verdicts in results.items():
        ops[classify(verdicts)].append(name)
        reasons.update({(op, reason) for v in verdicts for op, reason in map(tuple, v.get("reasons", []))})
        failures += [
            {"op": name, "sample": i, "status": v["status"], "detail": v["detail"]}
            for i, v in enumerate(verdicts)
            if v["status"] in _BAD
        ]
    return {
        "counts": {c: len(names) for c, names in ops.items()},
        "samples": sum(len(v) for v in results.values()),
        "random": sorted(name for name, v in results.items() if any(x.get("random") for x in v)),
        "ops": ops,
        "reasons": [{"op": op, "reason": reason, "ops": n} for (op, reason), n in reasons.most_common()],
        "failures": failures,
    }


def text(data: dict[str, Any], dtype: str = "float32", most: int = 40) -> str:
    """The table that the script prints."""
    lines = [f"{sum(data['counts'].values())} ops, {data['samples']} samples (CPU, {dtype})"]
    lines += [f"  {c:10} {n:5}" for c, n in data["counts"].items() if n]
    lines.append(f"  ({len(data['random'])} ops are random or undefined in eager: shapes and dtypes compared)")
    if data["reasons"]:
        lines.append("reasons for ATen, by number of ops:")
        lines += [f"  {r['ops']:4}  {r['op']}: {r['reason']}" for r in data["reasons"][:most]]
    if data["failures"]:
        lines.append("failures:")
        lines += [f"  {f['op']}[{f['sample']}] {f['status']}: {f['detail']}" for f in data["failures"]]
    return "\n".join(lines)
