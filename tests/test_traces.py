"""Trace files: what is written is read again; what is damaged, foreign or absurd is refused or counted, and nothing else is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trace_cases import MACHINE, TRACE

from effc.compiler.ir.errors import ArtifactError, OptionError
from effc.costmodel.parquet import files
from effc.costmodel.traces import Part, read, schema, write

pa = pytest.importorskip("pyarrow", reason="traces need the extra 'costmodel'")
pq = pytest.importorskip("pyarrow.parquet")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    part = Part(MACHINE, (TRACE, replace(TRACE, symbols=(9,), code=None)), ("linear/1x2x3 float32",))
    path = write(tmp_path, part)
    assert read(path) == part
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no temporary file is left"
    assert read(path).traces[0].kernel.schedule["mr"] == 6
    assert TRACE.spread == pytest.approx(0.15)


def test_every_file_has_a_name_of_its_own(tmp_path: Path) -> None:
    part = Part(MACHINE, (TRACE,))
    assert len({write(tmp_path, part) for _ in range(5)}) == 5
    assert len(files([tmp_path])) == 5


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut_short_is_one_clear_error(tmp_path: Path, share: float) -> None:
    whole, broken = write(tmp_path, Part(MACHINE, (TRACE,))), tmp_path / "broken.parquet"
    data = whole.read_bytes()
    broken.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ArtifactError, match=r"broken\.parquet cannot be read as traces .*every other file"):
        read(broken)
    assert broken.stat().st_size == int(share * len(data)), "the file is left as it was"
    assert read(whole).traces == (TRACE,)


def test_a_file_of_another_version_says_so(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path, Part(MACHINE, (TRACE,))))
    other = tmp_path / "other.parquet"
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"effc.traces": b"99"}), other)
    with pytest.raises(ArtifactError, match="has version 99 of the traces' schema, and this effc reads version 1"):
        read(other)


def test_a_missing_column_is_another_schema(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path, Part(MACHINE, (TRACE,))))
    other = tmp_path / "other.parquet"
    pq.write_table(table.drop_columns(["low"]), other)
    with pytest.raises(ArtifactError, match="schema"):
        read(other)


def test_a_parquet_file_of_something_else_holds_no_traces(tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1, 2]}), other)
    with pytest.raises(ArtifactError, match="holds no traces of effc"):
        read(other)


@pytest.mark.parametrize(
    "text", [b"{", b"{}", b"[" * 100_000, b"[]", json.dumps({**MACHINE.to_json(), "caches": [1, 2]}).encode()]
)
def test_an_edited_description_of_the_hardware_is_refused(tmp_path: Path, text: bytes) -> None:
    table = pq.read_table(write(tmp_path, Part(MACHINE, (TRACE,))))
    other = tmp_path / "other.parquet"
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"effc.hardware": text}), other)
    with pytest.raises(ArtifactError, match="no description of the hardware"):
        read(other)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"median": -1e-5}, "an absurd time"),
        ({"least": 0.0}, "an absurd time"),
        ({"high": float("inf")}, "an absurd time"),
        ({"median": float("nan")}, "an absurd time"),
        ({"high": 1e6}, "an absurd time"),
        ({"low": 3e-5}, "quartiles out of order"),
        ({"rounds": 0}, "a count below 1"),
        ({"contaminated": -1}, "a count below 1"),
        ({"spec": "{}"}, "no spec"),
        ({"spec": "[1"}, "no spec"),
        ({"spec": "[" * 100_000}, "no spec"),
        ({"spec": '"schedule"'}, "no spec"),
        ({"symbols": ()}, "no sizes for its spec"),
        ({"symbols": (1, 2)}, "no sizes for its spec"),
        ({"symbols": (-1,)}, "no sizes for its spec"),
        ({"symbols": (None,)}, "no sizes for its spec"),
    ],
)
def test_absurd_records_are_skipped_and_counted(tmp_path: Path, change: dict[str, object], fault: str) -> None:
    absurd = replace(TRACE, **change)  # type: ignore[arg-type]
    found = read(write(tmp_path, Part(MACHINE, (absurd, TRACE, absurd))))
    assert found.traces == (TRACE,)
    assert found.skipped == {fault: 2}


@pytest.mark.parametrize(
    "column", [pa.array([2**62, 0], pa.int64()).cast(pa.timestamp("us", tz="UTC")), pa.array([b"\xff", b"a"])]
)
def test_a_file_with_values_that_cannot_be_is_refused(tmp_path: Path, column: Any) -> None:
    """A date beyond the calendar, and a text that is none."""
    table = pq.read_table(write(tmp_path, Part(MACHINE, (TRACE, TRACE))))
    name = "op" if column.type == pa.binary() else "when"
    if name == "op":
        column = pa.Array.from_buffers(pa.string(), 2, column.buffers())
    place, other = table.schema.get_field_index(name), tmp_path / "other.parquet"
    pq.write_table(table.set_column(place, table.schema.field(place), column), other)
    with pytest.raises(ArtifactError, match="cannot be read as traces"):
        read(other)


def test_a_place_without_traces_is_one_clear_error(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(OptionError, match="there are no traces in"):
            files([place])


def test_the_documented_schema_is_the_schema() -> None:
    text = (Path(__file__).parent.parent / "docs" / "cost_model.md").read_text(encoding="utf-8")
    section = text.partition("## Trace files")[2].partition("\n## ")[0]
    rows = [line.split("|")[1].strip(" `") for line in section.splitlines() if line.startswith("| `")]
    assert rows == schema().names
