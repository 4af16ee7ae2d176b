"""What every test gets: a compile cache of its own session, two threads, fresh seeds, and a clean Dynamo."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before anything imports effc: tests neither read nor fill the user's cache; worker processes inherit this.
_CACHE = tempfile.TemporaryDirectory(prefix="effc-tests-")
os.environ["EFFC_CACHE_DIR"] = str(Path(_CACHE.name) / "cache")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin take cores from the other process of tests
gc.set_threshold(50_000, 20)  # torch makes so many objects that the default takes a tenth of the time

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))


def pytest_unconfigure(config: pytest.Config) -> None:
    _CACHE.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Models that a test file makes as it is imported are the same ones in every run, whatever was imported before."""
    torch.manual_seed(0)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What imports made stays: collections of garbage need not look at it again and again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """The same seed and no compiled graph at the start of each test; default dtype, grad mode and threads put back."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def exact_convolutions(request: pytest.FixtureRequest) -> Iterator[None]:
    """In tests of GPUs convolutions of float32 round nothing to TF32, which torch lets them by default; after each the default is back.

    Not by ``allow_tf32``, which nobody may set once ``torch.testing._internal`` is imported, as the samples of OpInfo are.
    """
    if not request.path.name.startswith("test_gpu_"):
        yield
        return
    setting = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # made at run time
    before, setting.fp32_precision = setting.fp32_precision, "ieee"
    yield
    setting.fp32_precision = before


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty compile cache for this test alone."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("EFFC_CACHE_DIR", str(directory))
    return directory


Compiler = Callable[..., Callable[..., Any]]


@pytest.fixture
def compiled() -> Compiler:
    """``compiled(model, **options)``: through effc with ``fallback="error"``, so that what falls back fails the test.

    ``dynamic=`` and ``fullgraph=`` go to ``torch.compile``; all else are options of effc.
    """

    def compile_(model: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        outer = {k: options.pop(k) for k in ("dynamic", "fullgraph") if k in options}
        return torch.compile(model, backend="effc", options={"fallback": "error", **options}, **outer)

    return compile_
