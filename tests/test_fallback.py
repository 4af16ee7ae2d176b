"""What effc does not compile: ATen runs it, the report says why, and ``fallback="error"`` refuses it by name."""

from __future__ import annotations

import operator
import platform
import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from capture_fakes import AtenExecutable, Stand
from torch import Tensor

from effc.compiler.capture import backend, record
from effc.compiler.capture.partition import Group
from effc.compiler.ir.errors import LoweringError, ToolchainCrash, UnsupportedError


def sorts(node: torch.fx.Node) -> bool:
    return "sort" in str(node.target)


def model(x: Tensor) -> Tensor:
    y = x.exp() + 1
    z = y.sort(0).values
    return z * 2


def test_reason_and_line_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(sorts).install(monkeypatch)
    with record() as recording:
        torch.compile(model, backend=stand.backend)(torch.randn(4, 3))
    (fallback,) = recording.graphs[0].fallbacks
    assert (fallback.op, fallback.reason) == ("aten.sort.default", "refused by the test")
    assert str(fallback.source) == f"test_fallback.py:{model.__code__.co_firstlineno + 2}"
    assert fallback.source.code == "z = y.sort(0).values"


def test_error_names_op_line_reason_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(sorts).install(monkeypatch)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        torch.compile(model, backend=stand.backend_with(fallback="error"))(torch.randn(4, 3))
    text = str(caught.value)
    line = model.__code__.co_firstlineno + 2
    assert "UnsupportedError: effc does not compile 1 op of this graph:" in text
    assert f"aten.sort.default at {__file__}:{line} (z = y.sort(0).values): refused by the test" in text
    assert "Leave out the option fallback='error' to let ATen run them." in text


def test_nothing_is_refused_where_all_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand().install(monkeypatch)
    x = torch.randn(4, 3)
    torch.testing.assert_close(torch.compile(model, backend=stand.backend_with(fallback="error"))(x), model(x))


@pytest.mark.parametrize("error", [LoweringError, ToolchainCrash, UnsupportedError])
def test_a_region_that_does_not_build_runs_by_aten(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand().install(monkeypatch)
    stand.cannot_build = lambda group: error("the lowering gave up")
    x = torch.randn(4, 3)
    with record() as recording:
        ours = torch.compile(lambda x: (x.exp() + 1) * 2, backend=stand.backend)(x)
    torch.testing.assert_close(ours, (x.exp() + 1) * 2)
    (graph,) = recording.graphs
    assert graph.regions == []
    assert {f.reason for f in graph.fallbacks} == {"the lowering gave up"}


def holds(target: str, text: str) -> Callable[[Group], Exception | None]:
    """Refuses regions that hold an op."""
    return lambda group: LoweringError(text) if any(target in str(n.target) for n in group.nodes) else None


def many_ops(x: Tensor) -> Tensor:
    for _ in range(3):
        x = (x.exp() + 1).cos() * 2 - x.t().reshape(x.shape)
    _, second = torch.split(x, 2, 0)
    return second + 1


@pytest.mark.parametrize("text", ["no schedule", "no schedule for it (cos)"])
def test_only_the_op_at_fault_leaves_the_region(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand().install(monkeypatch)
    stand.cannot_build = holds("cos", text)
    x = torch.randn(4, 3)
    with record() as recording:
        ours = torch.compile(many_ops, backend=stand.backend)(x)
    torch.testing.assert_close(ours, many_ops(x))
    (graph,) = recording.graphs
    assert [(f.op, f.reason) for f in graph.fallbacks] == [("aten.cos.default", text)] * 3  # all of a kind at once
    assert len(graph.regions) == 4


def test_ops_that_only_fail_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(group: Group) -> Exception | None:
        found = {str(n.target) for n in group.nodes}
        return ToolchainCrash("it died") if {"aten.exp.default", "aten.sin.default"} <= found else None

    def f(x: Tensor) -> Tensor:
        return (x.exp() + 1).sin() * 3

    stand = Stand().install(monkeypatch)
    stand.cannot_build = refuse
    x = torch.randn(4, 3)
    torch.testing.assert_close(torch.compile(f, backend=stand.backend)(x), f(x))


def test_a_region_that_keeps_failing_ends_with_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand().install(monkeypatch)
    stand.cannot_build = lambda group: LoweringError("no reason")
    x = torch.randn(4, 3)
    torch.testing.assert_close(torch.compile(many_ops, backend=stand.backend)(x), many_ops(x))


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand().install(monkeypatch)
    stand.failures = [RuntimeError("a bug")]
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="a bug"):
        torch.compile(model, backend=stand.backend)(torch.randn(4, 3))


def test_another_machine_runs_in_eager_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    backend._warn_eager.cache_clear()
    x = torch.randn(4, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for function in (model, lambda x: x + 1):
            torch.testing.assert_close(torch.compile(function, backend="effc")(x), function(x))
    assert [str(w.message) for w in caught if "effc" in str(w.message)] == [
        "effc compiles for Linux on x86-64; on linux arm64 models run in eager"
    ]


def test_check_accepts_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(sorts).install(monkeypatch)
    x = torch.randn(8, 30)
    torch.testing.assert_close(torch.compile(model, backend=stand.backend_with(check=True))(x), model(x))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda y: y.mul_(1 + 1e-5), "relative L2 error"),
        (lambda y: y[0, :1].mul_(1 + 3e-6), "element 0 is off by"),
        (lambda y: y[0, :1].fill_(float("nan")), "NaN in 1 elements where ATen has it in 0"),
    ],
    ids=["all", "one", "nan"],
)
def test_check_names_region_op_and_line(
    spoil: Callable[[Tensor], Tensor], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand().install(monkeypatch)

    def f(x: Tensor) -> Tensor:
        return x.exp() + 1

    compiled = torch.compile(f, backend=stand.backend_with(check=True))
    x = torch.randn(64, 30)
    compiled(x)
    (executable,) = stand.executables.values()
    right = type(executable).__call__

    def wrong(
        self: AtenExecutable, symbols: Sequence[int], tensors: Sequence[Tensor], **validate: bool
    ) -> list[Tensor]:
        results = right(self, symbols, tensors, **validate)
        spoil(results[0])
        return results

    monkeypatch.setattr(type(executable), "__call__", wrong)
    from effc.compiler.ir.errors import VerificationError

    with pytest.raises(VerificationError) as caught:
        compiled(x)
    line = f.__code__.co_firstlineno + 1
    assert str(caught.value).startswith(
        f"region_0: the result of aten.add.Tensor (add) at {__file__}:{line} (return x.exp() + 1) is wrong:"
    )
    assert text in str(caught.value)


def test_what_aten_does_faster_stays_there_unless_fallbacks_are_refused() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).cummax(1).values + 1

    x = torch.randn(3, 5)
    for fallback, left in (("eager", ["cummax"]), ("error", [])):
        torch._dynamo.reset()
        with torch.no_grad(), record() as recording:
            torch.testing.assert_close(torch.compile(f, backend="effc", options={"fallback": fallback})(x), f(x))
        assert [e.op.split(".")[1] for g in recording.graphs for e in g.fallbacks] == left


def test_results_of_one_op_may_be_read_before_and_after_an_op_of_aten() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        values, indices = x.max(1)
        return torch.sort(values)[0] * 2 + indices

    torch._dynamo.reset()
    x = torch.randn(5, 7)
    torch.testing.assert_close(torch.compile(f, backend="effc")(x), f(x))


def test_an_item_that_does_not_lower_goes_to_aten_with_its_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op alone makes a region whose refusal names its item: dividing again must end."""
    stand = Stand().install(monkeypatch)
    builds = []

    def refuse(group: Group) -> Exception | None:
        builds.append(group)
        assert len(builds) < 50, "the division goes on for ever"
        items = [n for n in group.nodes if n.target is operator.getitem]
        return LoweringError(f"no kernel for it ({items[0].name})") if items else None

    stand.cannot_build = refuse
    x = torch.randn(4, 3)
    with record() as recording:
        torch.testing.assert_close(torch.compile(model, backend=stand.backend)(x), model(x))
    assert [f.op for f in recording.graphs[0].fallbacks] == ["aten.sort.default"]
