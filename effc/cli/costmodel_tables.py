"""Errors of cost models as tables, for people."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Figures by name: None where there is none.
Figures = Mapping[str, float | None]
#: By family, then by who predicts.
Errors = Mapping[str, Mapping[str, Figures]]

_LATENCY = {
    "records": "records",
    "mape": "MAPE",
    "within": "within 10 %",
    "tau": "Kendall tau",
    "regret": "regret",
    "top_regret": "best of 5",
    "covered": "in range",
    "unsure": "unsure",
}
_CODE = {
    "records": "records",
    "instructions": "instructions",
    "code_bytes": "bytes",
    "spills": "spills, AUROC",
    "vector_share": "vector share",
}
_GPU = {
    "records": "records",
    "registers": "registers",
    "shared": "shared memory",
    "instructions": "instructions",
    "resident": "blocks at once",
    "spills": "spills, AUROC",
    "refused": "refused, AUROC",
}
_PLAIN = ("tau", "spills", "refused")
#: Titles, by what is held out.
TITLES = {
    "family": "each family held out whole",
    "shape": "shapes held out, while others of their family are known",
}


def latency(errors: Errors, title: str) -> None:
    """Print how well times are predicted of each family, and of all by simpler ways."""
    rows = {family: by["model"] for family, by in errors.items()}
    rows |= {f"all, by {who}": figures for who, figures in errors["all"].items() if who != "model"}
    _table(rows, _LATENCY, f"latency, {title}")


def code(errors: Errors, title: str) -> None:
    """Print how well facts of the code are predicted; nothing where none are known."""
    if errors:
        rows = {family: by["model"] for family, by in errors.items()}
        _table({**rows, "all, by constant": errors["all"]["constant"]}, _CODE, f"code, mean errors, {title}")


def gpu_code(errors: Errors) -> None:
    """Print how well facts of the code of GPU kernels are predicted."""
    rows = {family: by["model"] for family, by in errors.items()}
    _table({**rows, "all, by count": errors["all"]["count"]}, _GPU, "code of GPU kernels, mean errors, shapes held out")


def _table(rows: Mapping[str, Figures], columns: Mapping[str, str], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *columns.values(), title=title)
    for name, values in rows.items():
        table.add_row(name, *(_figure(column, values[column]) for column in columns))
    Console(width=None if os.isatty(1) else 120).print(table)


def _figure(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    if column == "records":
        return f"{value:.0f}"
    return f"{value:.2f}" if column in _PLAIN else f"{value:.1%}"


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Shows what is being trained."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("features", total=None)
        yield lambda text: shown.update(task, description=f"training: {text}")
