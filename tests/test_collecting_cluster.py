"""A collection that is spread over machines: what comes back is kept, whatever happens to the scheduler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collecting_cases import FakeBench, held, request_of

from effc.collecting.assignments import Assignment
from effc.collecting.cluster import ClusterError, spread_out
from effc.collecting.collector import Outcome, Request

ASSIGNED = [Assignment("", ("linear",), 0, index) for index in range(4)]


def fake(request: Request) -> FakeBench:
    return FakeBench()


@pytest.fixture
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="needs the extra 'cluster'")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, scheduler_port=0, protocol="tcp"
    ) as made:
        yield made


def test_a_scheduler_spreads_subjects_and_goes_on(cluster: Any, tmp_path: Path) -> None:
    first = spread_out(cluster.scheduler_address, ASSIGNED[:2], request_of(tmp_path), bench=fake)
    assert (first.records, first.subjects) == (24, 2)
    assert len(held(tmp_path)) == 24
    again = spread_out(cluster.scheduler_address, ASSIGNED, request_of(tmp_path), bench=fake)
    assert (again.records, again.subjects, again.reached) == (24, 2, 4)
    assert len(held(tmp_path)) == 48
    assert {p.suffix for p in tmp_path.iterdir()} == {".parquet"}


def test_a_scheduler_that_goes_away_loses_nothing_that_came_back(cluster: Any, tmp_path: Path) -> None:
    def leave(text: str, outcome: Outcome) -> None:
        cluster.close()

    with pytest.raises(ClusterError, match=r"went away; 12 records are kept .* goes on"):
        spread_out(cluster.scheduler_address, ASSIGNED, request_of(tmp_path), leave, slow)
    assert len(held(tmp_path)) == 12


def test_a_budget_ends_what_the_cluster_does(cluster: Any, tmp_path: Path) -> None:
    found = spread_out(cluster.scheduler_address, ASSIGNED, request_of(tmp_path, seconds=0.8), bench=slow)
    assert found.subjects < len(ASSIGNED)
    assert len(held(tmp_path)) == found.records


def slow(request: Request) -> FakeBench:
    time.sleep(0.5)
    return FakeBench()


def test_no_scheduler_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="needs the extra 'cluster'")
    monkeypatch.setattr("effc.collecting.cluster._ANSWER", 0.5)
    with pytest.raises(ClusterError, match=r"no scheduler answers at tcp://127\.0\.0\.1:9"):
        spread_out("tcp://127.0.0.1:9", ASSIGNED, request_of(tmp_path), bench=fake)
