"""``passes={"sparsity": …}``: which weights are pruned or found to hold zeros, what then runs, and what happens when they change.

That the rewritten graph computes what eager PyTorch makes of it is held by ``check=True``, which compares every region.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_times import by_size, fix
from plan_files import kept_in_a_file
from pruned_models import LAYERS, Transposed, compiled, convolutions, forms, net, packed, pruned, put, run, same
from test_sparsity_patterns import holds
from torch import nn

import effc
from effc.compiler.capture import record
from effc.compiler.compress.pruning.prune import prune
from effc.compiler.ir.pattern import Pattern
from effc.passes.sparsity import Method


# -- pruning ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pattern", "sparsity", "method"),
    [
        ("unstructured", 0.9, "wanda"),
        ("2:4", None, "magnitude"),
        ("2:4", None, "sparsegpt"),
        ("16x1", 0.8, "magnitude"),
        ("16x1", 0.8, "wanda"),
        ("1x16", 0.8, "sparsegpt"),
    ],
)
def test_the_pruned_model_runs(pattern: str, sparsity: float | None, method: Method) -> None:
    """As the model does with weights that are pruned beforehand; the head, which is a table, stays."""
    model, tokens = net()
    calibration = effc.calibrate(model, [tokens, tokens.flip(0)])
    given = {"pattern": pattern, "method": method, "calibration": calibration}
    given |= {} if sparsity is None else {"sparsity": sparsity}
    found, recording = run(model, tokens, given, check=True, fallback="error")
    assert set(forms(recording)) == set(LAYERS)
    share = Pattern.parse(pattern).sparsity or sparsity
    assert share is not None
    for name in LAYERS:
        weights = {name: model.get_parameter(name).detach()}
        put(model, prune(weights, Pattern.parse(pattern), share, method, calibration.sites[name]))
        assert holds(model.get_parameter(name), pattern)
    assert same(found, model, tokens)
    assert any("embedding.weight stays as it is: an embedding looks its rows up" in note for note in recording.notes)
    if share >= 0.8:
        assert packed(recording).count("sparse_panels") == 3


@pytest.mark.parametrize("pattern", ["unstructured", "4x1", "1x16"])
def test_convolutions(pattern: str) -> None:
    model, x = convolutions()
    calibration = effc.calibrate(model, [x])
    given = {"pattern": pattern, "sparsity": 0.8, "method": "sparsegpt", "calibration": calibration}
    found, recording = run(model, x, given, check=True)
    assert set(forms(recording)) == {"wide.weight", "point.weight"}
    notes = "\n".join(recording.notes)
    assert "stem.weight stays as it is: it has fewer than 1024 elements" in notes
    assert "groups.weight stays as it is: of a convolution in groups" in notes
    for name in ("wide.weight", "point.weight"):
        weights = {name: model.get_parameter(name).detach()}
        put(model, prune(weights, Pattern.parse(pattern), 0.8, "sparsegpt", calibration.sites[name]))
        assert holds(model.get_parameter(name), pattern)
    assert same(found, model, x)
    assert "sparse_panels" in packed(recording)


@pytest.mark.parametrize(
    ("pattern", "share", "size", "function"), [("16x1", 0.9, 28, "sparse_panels"), ("2:4", 0.5, 1, "group_panels")]
)
def test_a_batch_norm_keeps_the_zeros(pattern: str, share: float, size: int, function: str) -> None:
    """Its scales go into the weights of a convolution of one position."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU6()).eval()
    nn.init.uniform_(model.get_parameter("1.weight"), 0.5, 2)
    pruned(model, pattern, share, ("0.weight",))
    x = torch.randn(1, 64, size, size)
    found, recording = run(model, x, {}, check=True)
    assert same(found, model, x)
    assert function in packed(recording)


@pytest.mark.parametrize("pattern", ["unstructured", "4x1", "16x1", "1x16"])
def test_a_batch_norm_keeps_the_zeros_of_a_window(pattern: str) -> None:
    """Also where blocks lie along channels, which are not innermost in the parameter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()).eval()
    nn.init.uniform_(model.get_parameter("1.weight"), 0.5, 2)
    pruned(model, pattern, 0.95, ("0.weight",))
    x = torch.randn(2, 32, 23, 20)
    found, recording = run(model, x, {}, check=True)
    assert same(found, model, x)
    assert "sparse_panels" in packed(recording)


@pytest.mark.parametrize("rows", [1, 5, 33])
def test_weights_with_the_sum_first(rows: int) -> None:
    torch.manual_seed(0)
    model, x = Transposed().eval(), torch.randn(rows, 128)
    found, recording = run(model, x, {"pattern": "16x1", "sparsity": 0.75}, check=True)
    put(model, {"weight": prune({"w": model.weight.detach().T}, Pattern.parse("16x1"), 0.75)["w"].T})
    assert same(found, model, x)
    assert "sparse_panels" in packed(recording)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models(dtype: torch.dtype) -> None:
    """Pruned like others, by kernels for dense weights."""
    model, tokens = net()
    found, recording = run(model.to(dtype), tokens, {"pattern": "2:4"}, check=True)
    assert found.dtype == dtype
    assert {form.weight.dtype for form in forms(recording).values()} == {dtype}
    assert all(holds(form.weight, "2:4") for form in forms(recording).values())


def test_dynamic_sizes() -> None:
    model, _ = net()
    options: dict[str, Any] = {"passes": {"sparsity": {"pattern": "16x1", "sparsity": 0.8}}}
    other, _ = net()
    pruned(other, "16x1", 0.8)
    with torch.no_grad():
        fast = torch.compile(model, backend="effc", dynamic=True, options=options)
        for length in (7, 1, 19):
            tokens = torch.randint(0, 100, (2, length))
            assert same(fast(tokens), other, tokens)


def test_pruned_weights_may_be_quantized() -> None:
    model, tokens = net()
    with torch.no_grad(), record() as recording:
        passes = {"sparsity": {"pattern": "2:4"}, "quantize": {"weights": "int8", "skip": ["embed*"]}}
        found = compiled(model, passes=passes, check=True)(tokens)
        pruned(model, "2:4", 0.5)
        expected = model(tokens)
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.02
    (compressed,) = recording.compressed
    assert [len(stage.weights) for stage in compressed.stages] == [3, 3]


def test_pruned_convolutions_may_be_quantized() -> None:
    """Pruning leaves a window's weight in another order than the convolution takes it in."""
    model, x = convolutions()
    layers = ("wide.weight", "groups.weight", "point.weight")
    calibration = effc.calibrate(model, [x])
    with torch.no_grad(), record() as recording:
        quantized = {"weights": "int8", "activations": "tensor", "calibration": calibration}
        passes = {"sparsity": {"pattern": "4x1", "sparsity": 0.5}, "quantize": quantized}
        found = compiled(model, passes=passes, check=True)(x)
        pruned(model, "4x1", 0.5, layers)
        expected = model(x)
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.02
    (compressed,) = recording.compressed
    first, second = ({name.removesuffix(":pruned") for name in stage.weights} for stage in compressed.stages)
    assert first == set(layers)
    assert {"wide.weight", "point.weight"} <= second


# -- zeros that are there -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pattern", "sparsity"), [("unstructured", 0.9), ("2:4", 0.5), ("16x1", 0.8), ("1x16", 0.8), ("channel", 0.5)]
)
def test_zeros_that_are_there_are_used_exactly(pattern: str, sparsity: float) -> None:
    model, tokens = net()
    pruned(model, pattern, sparsity, ("query.weight", "out.weight"))
    found, recording = run(model, tokens, {}, check=True)
    assert same(found, model, tokens)
    assert {name: str(form.pattern) for name, form in forms(recording).items()} == {
        "query.weight": pattern,
        "out.weight": pattern,
    }
    notes = "\n".join(recording.notes)
    assert f"sparsity: 2 weights hold zeros, 2 as {pattern}" in notes
    assert "value.weight stays as it is: it holds too few zeros" in notes


def test_three_kinds_of_compression() -> None:
    """Of factors, of which each is pruned, and then in bytes."""
    model, tokens = net()
    passes = {"low_rank": {"rank": 32}, "sparsity": {"pattern": "2:4"}, "quantize": {"skip": ["embed*"]}}
    with torch.no_grad(), record() as recording:
        compiled(model, passes=passes, check=True)(tokens)
    (compressed,) = recording.compressed
    assert [len(stage.weights) for stage in compressed.stages] == [4, 6, 6]


def test_without_the_option_nothing_changes() -> None:
    model, tokens = net()
    pruned(model, "16x1", 0.9)
    with torch.no_grad(), record() as recording:
        assert same(compiled(model)(tokens), model, tokens)
    assert recording.compressed == []
    assert "sparse_panels" not in packed(recording)


def test_a_weight_of_zeros_alone_stays() -> None:
    model, tokens = net()
    with torch.no_grad():
        model.get_parameter("value.weight").zero_()
    found, recording = run(model, tokens, {"keep_channels": True})
    with torch.no_grad():
        assert torch.allclose(found, model(tokens), atol=1e-6)
    assert any("value.weight stays as it is: it holds zeros only" in note for note in recording.notes)


def test_nan_and_infinity_are_no_zeros() -> None:
    model, tokens = net()
    pruned(model, "16x1", 0.9, ("out.weight",))
    with torch.no_grad():
        model.get_parameter("out.weight")[3, 5] = float("inf")
        model.get_parameter("out.weight")[40, 7] = float("nan")
    found, recording = run(model, tokens, {})
    assert set(forms(recording)) == {"out.weight"}
    with torch.no_grad():
        assert torch.allclose(found, model(tokens), equal_nan=True, atol=1e-5)


# -- weights that change ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "sparsity", [{"pattern": "16x1", "sparsity": 0.8}, {"pattern": "unstructured", "sparsity": 0.8}, {}]
)
def test_after_a_change_the_exact_model_runs_until_refresh(sparsity: dict[str, Any]) -> None:
    model, tokens = net()
    if not sparsity:
        pruned(model, "16x1", 0.8)
    fast = compiled(model, passes={"sparsity": sparsity})
    with torch.no_grad():
        fast(tokens)
        model.get_parameter("query.weight").mul_(2)
        with pytest.warns(UserWarning, match="not the weights that effc compressed"):
            assert same(fast(tokens), model, tokens)
        effc.refresh(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = fast(tokens)
        pruned(model, "16x1" if not sparsity else sparsity["pattern"], 0.8)
        assert same(found, model, tokens)


def test_fewer_zeros_than_before_are_not_taken() -> None:
    model, tokens = net()
    pruned(model, "16x1", 0.8)
    fast = compiled(model, passes={"sparsity": {}})
    with torch.no_grad():
        fast(tokens)
        model.get_parameter("query.weight").copy_(torch.randn(256, 128))
        effc.refresh(model)
        with pytest.warns(UserWarning, match=r"query\.weight has fewer zeros than when it was compiled"):
            assert same(fast(tokens), model, tokens)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, tokens = net()
    options = {"passes": {"sparsity": {"pattern": "16x1", "sparsity": 0.8}}}
    effc.save(model, tokens, tmp_path / "small", options=options)
    with torch.no_grad():
        assert torch.equal(effc.load(tmp_path / "small")(tokens), compiled(model, **options)(tokens))


# -- refusals -----------------------------------------------------------------------------------------------------
def test_what_is_skipped_stays_exact() -> None:
    model, tokens = net()
    found, recording = run(model, tokens, {"pattern": "2:4", "skip": ["*"]})
    assert same(found, model, tokens)
    assert any("option 'skip' names it" in note for note in recording.notes)


def test_a_pattern_that_does_not_divide_is_an_error_that_names_layer_pattern_and_shape() -> None:
    model, tokens = net()
    with pytest.raises(
        Exception, match=r"out\.weight: the sparsity pattern '1x160' does not divide a weight of shape \[128, 256\]"
    ):
        run(model, tokens, {"pattern": "1x160", "sparsity": 0.5, "skip": ["query*", "value*"]})


def test_weights_that_cannot_be_pruned_are_errors_that_name_them() -> None:
    for value, text in ((float("nan"), "the weight holds NaN"), (0.0, "all of the weight is 0")):
        model, tokens = net()
        with torch.no_grad():
            model.get_parameter("query.weight").fill_(value)
        with pytest.raises(Exception, match=rf"query\.weight: {text}"):
            run(model, tokens, {"pattern": "2:4"})


def test_a_layer_that_calibration_has_not_seen_stays() -> None:
    model, tokens = net()
    calibration = effc.calibrate(nn.Sequential(nn.Linear(4, 4)).eval(), [torch.randn(3, 4)])
    found, recording = run(model, tokens, {"pattern": "2:4", "method": "wanda", "calibration": calibration})
    assert same(found, model, tokens)
    assert any("query.weight stays as it is: the calibration has not seen it" in note for note in recording.notes)


def test_gradients_and_pruning_exclude_each_other() -> None:
    model, tokens = net()
    with pytest.raises(Exception, match="the rewrite sparsity and gradients exclude each other"):
        compiled(model, passes={"sparsity": {"pattern": "2:4"}})(tokens)


# -- plans --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sparsity", [{}, {"pattern": "16x1", "sparsity": 0.8, "method": "sparsegpt"}])
def test_a_plan_with_sparse_weights_is_kept_in_a_file(
    sparsity: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that holds zeros without being asked."""
    fix(monkeypatch, by_size)
    model, tokens = net()
    if not sparsity:
        pruned(model, "16x1", 0.8)
    calibration = effc.calibrate(model, [tokens, tokens.flip(0)])
    passes: dict[str, Any] = {"quantize": False, "low_rank": False}
    if sparsity:
        passes["sparsity"] = {**sparsity, "calibration": calibration}
    plan = effc.plan(model, calibration, accuracy_budget=1.0 if sparsity else 1e-5, options={"passes": passes})
    assert "out.weight" in plan.weights
    with record() as recording:
        found = kept_in_a_file(plan, model, tokens, tmp_path / "plan")
    assert "sparse_panels" in packed(recording)
    if not sparsity:
        assert same(found, model, tokens)
