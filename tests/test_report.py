"""``effc.explain`` and its report; and that the public face imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from capture_fakes import Stand
from torch import Tensor, nn

import effc
from effc.compiler.capture import backend, record
from effc.compiler.capture.source import Source


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return torch.relu(y).sort(-1).values @ y.t()


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    made = Stand(lambda n: "sort" in str(n.target)).install(monkeypatch)
    monkeypatch.setattr(backend, "builder", made.builder)
    return made


def test_report_counts_ops_and_flops(stand: Stand) -> None:
    with torch.no_grad():
        report = effc.explain(Net(), torch.randn(4, 16))
    assert report.ops[1] == 1
    assert report.flops == (2 * 4 * 16 * 8 + 2 * 4 * 8 * 4, 0)
    ((fallback, times),) = report.fallbacks
    assert (fallback.op, times, fallback.source.code) == (
        "aten.sort.default", 1, "return torch.relu(y).sort(-1).values @ y.t()",
    )  # fmt: skip
    assert 0 < sum(report.phases.values()) < report.seconds


def test_report_as_text(stand: Stand) -> None:
    with torch.no_grad():
        text = str(effc.explain(Net(), torch.randn(4, 16)))
    assert "1 graph (1 inference), 2 regions" in text
    assert text.count("note: a note from the runtime") == 1
    assert (
        f"1 x aten.sort.default at test_report.py:{Net.forward.__code__.co_firstlineno + 2}: refused by the test"
        in text
    )
    assert "FLOP: 1.28 k compiled, 0 run by ATen (100.0 % compiled)" in text


def test_kernels_of_modules_without_a_line_are_named_after_the_module() -> None:
    """Torch keeps no line of its own modules that nobody's code calls."""
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 4)))
    with torch.no_grad():
        report = effc.explain(model, torch.randn(4, 16))
    (graph,) = report.graphs
    places = {k.location for region in graph.regions for k in region.kernels}
    assert places == {"module 0 (Linear)", "module 2.0 (Linear)"}


def test_a_location_holds_nothing_that_mlir_would_quote() -> None:
    assert Source(module='layers["a\\b"] (Linear)').location() == ("module layers['a/b'] (Linear)", 0)


def test_gradients_are_reported(stand: Stand) -> None:
    report = effc.explain(Net(), torch.randn(4, 16))
    assert "under torch.no_grad() nothing is kept for a backward" in str(report)


def test_report_as_json(stand: Stand, tmp_path: Path) -> None:
    with torch.no_grad():
        report = effc.explain(Net(), torch.randn(4, 16))
    text = report.to_json(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text() == text
    data = json.loads(text)
    assert data["ops"]["aten"] == 1
    assert data["graphs"][0]["fallbacks"][0]["op"] == "aten.sort.default"


def test_report_as_html(stand: Stand, tmp_path: Path) -> None:
    with torch.no_grad():
        effc.explain(Net(), torch.randn(4, 16)).to_html(tmp_path / "report.html")
    found: list[str] = []

    class Cells(HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append(data)

    page = (tmp_path / "report.html").read_text()
    Cells().feed(page)
    assert "aten.sort.default" in found
    assert "http" not in page  # self-contained


def test_explain_leaves_compiled_functions_alone(stand: Stand) -> None:
    model = Net()
    compiled = torch.compile(model, backend="effc")
    x = torch.randn(4, 16)
    with torch.no_grad():
        compiled(x)
        effc.explain(compiled, x)
        with record() as recording:
            compiled(x)
    assert recording.graphs == []  # nothing was compiled again


def test_explain_refuses_bad_options() -> None:
    with pytest.raises(effc.OptionError, match="unknown option 'chek': did you mean 'check'"):
        effc.explain(Net(), torch.randn(4, 16), options={"chek": True})


def test_explain_raises_the_refusal_itself(stand: Stand) -> None:
    with pytest.raises(effc.UnsupportedError, match="effc does not compile 1 op of this graph"), torch.no_grad():
        effc.explain(Net(), torch.randn(4, 16), options={"fallback": "error"})


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'effc' has no attribute 'nothing'"):
        effc.nothing  # noqa: B018


#: In the order in which a user meets them: an import, and what has not been imported with it.
_LAZY = (
    ("import effc", ("torch", "torch_mlir", "numpy")),
    ("effc.Options(fallback='error'); effc.OptionError", ("torch", "torch_mlir")),
    ("import effc.compiler.capture", ("torch", "torch_mlir")),
    ("effc.explain", ("torch_mlir",)),
    ("import effc.compiler.capture.backend", ("torch_mlir",)),
)


def test_imports_are_lazy(tmp_path: Path) -> None:
    lines = [f"{code}; print([m for m in {absent!r} if m in sys.modules])" for code, absent in _LAZY]
    check = "\n".join(["import sys", *lines])
    done = subprocess.run([sys.executable, "-P", "-c", check], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["[]"] * len(_LAZY) + [""]
