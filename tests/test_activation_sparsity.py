"""Models whose activations hold zeros, by a ReLU or by thresholds: which kernels they get, and that these compute what they should."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernels import HOST
from test_quantize import compiled
from torch import Tensor, nn

import effc
from effc.compiler.capture import record
from effc.compiler.capture.recording import Recording
from effc.compiler.compress.forms import steps_of
from effc.compiler.compress.thresholds.form import Thresholded
from effc.compiler.compress.thresholds.threshold import cats, chess
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import Options
from effc.passes.activation_sparsity import SparsifyActivations

skipping = pytest.mark.skipif(HOST.vector_bytes < 64, reason="lists are compressed by AVX-512")


class Mlp(nn.Module):
    """A gated MLP behind a residual."""

    def __init__(self, dim: int, hidden: int, gate: Callable[[Tensor], Tensor] = F.silu, bias: bool = False) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(dim, hidden, bias=bias) for _ in range(2))
        self.down, self.function = nn.Linear(hidden, dim, bias=False), gate

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(self.function(self.gate(x)) * self.up(x))
        return result


class Block(nn.Module):
    """Attention with fewer keys than queries, then a gated MLP."""

    def __init__(self, dim: int = 256, hidden: int = 320) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim // 2), nn.Linear(dim, dim // 2)
        self.out, self.mlp = nn.Linear(dim, dim), Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, 16)).transpose(1, 2) for p in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), is_causal=True)
        result: Tensor = self.mlp(x + self.out(y.transpose(1, 2).flatten(2)))
        return result


class Layers(nn.Sequential):
    """What a function stands for between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], dim: int = 256, hidden: int = 320) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.Linear(hidden, dim))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self[1](self.function(self[0](x)))
        return result

    @property
    def last(self) -> nn.Linear:
        found = self[1]
        assert isinstance(found, nn.Linear)
        return found


def run(model: nn.Module, x: Tensor, **options: Any) -> tuple[Tensor, Recording]:
    with torch.no_grad(), record() as recording:
        return compiled(model, check=True, fallback="error", **options)(x), recording


def sparse(model: nn.Module, x: Tensor, **options: Any) -> tuple[Tensor, Recording]:
    return run(model, x, passes={"activation_sparsity": options})


def methods(recording: Recording) -> list[str]:
    """Of the kernels that leave out weights."""
    kernels = [k for program, _ in recording.programs for k in program.kernels]
    return sorted(str(m) for k in kernels if (m := k.schedule.get("skip")))


def thresholds(recording: Recording) -> dict[str, Tensor]:
    forms = {n: w.form for c in recording.compressed for n, w in c.stages[0].weights.items()}
    return {n: f.threshold for n, f in forms.items() if isinstance(f, Thresholded) and f.threshold is not None}


def thresholded(mlp: Mlp, x: Tensor, threshold: Tensor) -> Tensor:
    """The MLP in float64, by definition."""
    mlp, x = mlp.double(), x.double()
    activated = mlp.function(mlp.gate(x))
    hidden = torch.where(activated.abs() <= threshold.double(), 0, activated * mlp.up(x))
    result: Tensor = x + mlp.down(hidden)
    mlp.float()
    return result


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


# -- zeros that a model makes -----------------------------------------------------------------------------------------
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu squared": lambda x: F.relu(x) ** 2,
    "threshold": lambda x: torch.where(x.abs() > 0.5, x, 0.0),
    "negated": lambda x: -F.relu(x),
}


@skipping
@pytest.mark.parametrize("name", FUNCTIONS)
def test_zeros_of_a_row_are_used(name: str) -> None:
    model, x = Layers(FUNCTIONS[name]).eval(), torch.randn(1, 256)
    found, recording = run(model, x)
    with torch.no_grad():
        near(found, model.double()(x.double()))
    assert methods(recording) == ["inputs"]


@pytest.mark.parametrize("function", [F.gelu, torch.tanh, lambda x: F.leaky_relu(x, 0.1), lambda x: x.clamp(-1, 1)])
def test_other_functions_make_no_zeros(function: Callable[[Tensor], Tensor]) -> None:
    _, recording = run(Layers(function).eval(), torch.randn(1, 256))
    assert methods(recording) == []


def test_several_rows_are_multiplied_whole() -> None:
    model = Layers(F.relu).eval()
    with torch.no_grad(), record() as recording:
        fast = torch.compile(model, backend="effc", dynamic=True)
        for rows in (5, 2, 17):
            x = torch.randn(rows, 256)
            near(fast(x), model(x))
    assert methods(recording) == []


@skipping
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_not_finite_stays(odd: float) -> None:
    model, x = Layers(F.relu).eval(), torch.randn(1, 256)
    with torch.no_grad():
        fast = compiled(model)
        x[0, 3] = odd
        assert torch.equal(fast(x).isnan(), model(x).isnan())
        x[0, 3] = 0
        model.last.weight[7, 5] = odd  # an element that meets a zero or not
        for row in (x, -x):
            found, expected = fast(row), model(row)
            assert torch.equal(found.isfinite(), expected.isfinite())
            near(found[expected.isfinite()], expected[expected.isfinite()])


@skipping
def test_a_relu_gate_leaves_the_layer_beside_it_whole() -> None:
    """Zero times an infinite sum is NaN in eager; its own sums are zeros, which the last layer leaves out."""
    model, x = Mlp(256, 320, F.relu).eval(), torch.randn(1, 256)
    found, recording = run(model, x)
    with torch.no_grad():
        near(found, model(x))
    assert methods(recording) == ["inputs"]


@skipping
def test_a_condition_spares_sums() -> None:
    """Also where the model itself says it."""

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(256, 320), nn.Linear(256, 320)

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(self.left(x) > 0.3, self.right(x), 0.0)

    model, x = Chosen().eval(), torch.randn(1, 256)
    found, recording = run(model, x)
    with torch.no_grad():
        near(found, model(x))
    assert methods(recording) == ["outputs"]


# -- thresholds -------------------------------------------------------------------------------------------------------
def test_thresholds_leave_the_share_that_is_asked() -> None:
    activated, up = torch.randn(50, 37), torch.randn(50, 37) * torch.rand(37)
    up[:, 5] = 0
    for share in (0.1, 0.5, 0.9):
        assert float((activated.abs() <= cats(activated, share)).float().mean()) == pytest.approx(share, abs=1e-3)
        assert float((activated.abs() <= chess(activated, up, share)).float().mean()) == pytest.approx(share, abs=1e-3)
    limits = chess(activated, up, 0.5) * up.abs().mean(0)
    near(limits[torch.arange(37) != 5], limits[0].expand(36))


@skipping
@pytest.mark.parametrize("method", ["cats", "chess"])
@pytest.mark.parametrize(("dim", "hidden"), [(256, 320), (257, 331)])
def test_gated_mlp(dim: int, hidden: int, method: str) -> None:
    model = Mlp(dim, hidden).eval()
    rows = torch.randn(64, dim)
    calibration = effc.calibrate(model, [rows])
    with torch.no_grad():
        for x in (torch.randn(1, dim), torch.randn(1, 1, dim), torch.zeros(1, dim), 100 * torch.randn(1, dim)):
            torch._dynamo.reset()
            found, recording = sparse(model, x, method=method, sparsity=0.5, calibration=calibration)
            (threshold,) = thresholds(recording).values()
            near(found, thresholded(model, x, threshold))
            assert methods(recording) == ["inputs", "outputs"]
        share = (F.silu(model.gate(rows)).abs() <= threshold).float().mean()
    assert float(share) == pytest.approx(0.5, abs=0.01)
    assert threshold.shape == (() if method == "cats" else (hidden,))


@skipping
@pytest.mark.parametrize("method", ["cats", "chess"])
def test_gated_mlp_of_bfloat16(method: str) -> None:
    model = Mlp(512, 640).eval().bfloat16()
    calibration = effc.calibrate(model, [torch.randn(64, 512).bfloat16()])
    x = torch.randn(1, 512).bfloat16()
    found, recording = sparse(model, x, method=method, sparsity=0.7, calibration=calibration)
    assert methods(recording) == ["inputs", "outputs"]
    (threshold,) = thresholds(recording).values()
    with torch.no_grad():  # elements at the threshold may fall on either side of it
        expected = thresholded(model, x, threshold)
    assert float((found.double() - expected).norm() / expected.norm()) < 0.03


@skipping
def test_zeros_of_a_row_of_bfloat16_are_used() -> None:
    model, x = Layers(F.relu, 512, 640).eval().bfloat16(), torch.randn(1, 512).bfloat16()
    found, recording = run(model, x)
    assert methods(recording) == ["inputs"]
    with torch.no_grad():
        expected = model.double()(x.double())
    assert float((found.double() - expected).norm() / expected.norm()) < 0.01


@skipping
@pytest.mark.parametrize(("sparsity", "chosen"), [(0.02, []), (0.5, ["inputs", "outputs"])])
def test_what_is_asked_for_says_which_kernels_pay(sparsity: float, chosen: list[str]) -> None:
    model, x = Mlp(256, 320).eval(), torch.randn(1, 256)
    calibration = effc.calibrate(model, [torch.randn(64, 256)])
    found, recording = sparse(model, x, sparsity=sparsity, calibration=calibration)
    assert methods(recording) == chosen
    (threshold,) = thresholds(recording).values()
    with torch.no_grad():
        near(found, thresholded(model, x, threshold))


@pytest.mark.parametrize("method", ["cats", "chess"])
def test_prefill_has_the_zeros_of_decode(method: str) -> None:
    """Any number of rows gives what single rows give."""
    model = Mlp(256, 320).eval()
    calibration = effc.calibrate(model, [torch.randn(64, 256)])
    options: dict[str, Any] = {"passes": {"activation_sparsity": {"method": method, "calibration": calibration}}}
    x = torch.randn(12, 256)
    with torch.no_grad():
        single = torch.cat([compiled(model, **options)(row) for row in x.split(1)])
        torch._dynamo.reset()
        fast = torch.compile(model, backend="effc", options=options, dynamic=True)
        for rows in (12, 5):
            near(fast(x[:rows]), single[:rows])


@skipping
def test_projections_of_attention() -> None:
    model = Block().eval()
    calibration = effc.calibrate(model, [torch.randn(2, 20, 256) for _ in range(3)], held_out=0)
    x = torch.randn(1, 1, 256)
    found, recording = sparse(model, x, method="chess", sparsity=0.4, calibration=calibration)
    limits = thresholds(recording)
    assert limits.keys() == {"query.weight", "key.weight", "value.weight", "out.weight", "mlp.down.weight"}
    assert limits["query.weight"] is limits["key.weight"], "they read one activation"

    def zeroed(t: Tensor, name: str) -> Tensor:
        return torch.where(t.abs() <= limits[name].double(), 0, t)

    with torch.no_grad():
        model.double()
        value = (
            model.value(zeroed(x.double(), "query.weight")).unflatten(-1, (-1, 16)).repeat_interleave(2, 2).flatten(2)
        )
        y = x + model.out(zeroed(value, "out.weight"))  # attention to one key is its value
        near(found, thresholded(model.mlp, y, limits["mlp.down.weight"]))
    assert methods(recording).count("inputs") >= 2
    assert methods(recording).count("outputs") == 1


def test_cats_leaves_attention_alone() -> None:
    model = Block().eval()
    calibration = effc.calibrate(model, [torch.randn(2, 20, 256)])
    _, recording = sparse(model, torch.randn(1, 1, 256), calibration=calibration)
    assert thresholds(recording).keys() == {"mlp.down.weight"}
    assert "activation_sparsity: 1 gated MLPs have 50% zeros by cats" in recording.notes
    assert "query.weight stays as it is: it is no part of a gated MLP" in recording.notes


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Mlp(256, 320, bias=True), "no part of a gated MLP"),
        (Layers(F.silu), "no part of a gated MLP"),
        (Mlp(256, 320, lambda x: x), "no part of a gated MLP"),
        (Mlp(256, 320).half(), "only kernels of float32"),
    ],
)
def test_others_stay(model: nn.Module, why: str) -> None:
    x = torch.randn(1, 256, dtype=next(model.parameters()).dtype)
    calibration = effc.calibrate(model.eval(), [x])
    _, recording = sparse(model, x, calibration=calibration)
    assert thresholds(recording) == {}
    assert any(why in note for note in recording.notes)


def test_products_under_autocast_stay() -> None:
    """They are of bfloat16, whatever the weights are."""
    model, x = Mlp(256, 320).eval(), torch.randn(1, 256)
    calibration = effc.calibrate(model, [x])
    with torch.autocast("cpu", torch.bfloat16):
        _, recording = sparse(model, x, calibration=calibration)
    assert thresholds(recording) == {}
    assert any("only kernels of float32" in note for note in recording.notes)


def test_one_skipped_weight_keeps_the_mlp_exact() -> None:
    model, x = Mlp(256, 320).eval(), torch.randn(1, 256)
    found, recording = sparse(model, x, calibration=effc.calibrate(model, [x]), skip=["up.*"])
    assert thresholds(recording) == {}
    with torch.no_grad():
        near(found, model(x))


@skipping
def test_nan_exceeds_every_threshold() -> None:
    model, x = Mlp(256, 320).eval(), torch.randn(1, 256)
    calibration = effc.calibrate(model, [x])
    x[0, 0] = torch.nan
    found, _ = sparse(model, x, calibration=calibration)
    assert found.isnan().all()


def test_new_weights_get_new_thresholds() -> None:
    model, x = Mlp(256, 320).eval(), torch.randn(1, 256)
    fast = compiled(
        model, passes={"activation_sparsity": {"calibration": effc.calibrate(model, [torch.randn(64, 256)])}}
    )
    with torch.no_grad(), record() as recording:
        fast(x)
        model.gate.weight.mul_(3)
        with pytest.warns(UserWarning, match="not the weights that effc compressed"):
            near(fast(x), model(x))
        effc.refresh(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = fast(x)
        held = next(iter(recording.compressed[0].stages[0].rewritten.tensors.values()))
        near(found, thresholded(model, x, held))


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, x = Mlp(256, 320).eval(), torch.randn(1, 256)
    options = {"passes": {"activation_sparsity": {"calibration": effc.calibrate(model, [torch.randn(64, 256)])}}}
    effc.save(model, x, tmp_path / "sparse", options=options)
    with torch.no_grad():
        assert torch.equal(effc.load(tmp_path / "sparse")(x), compiled(model, **options)(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "'sparsity' is 1.0: expected the share of zeros, above 0 and below 1"),
        ({"sparsity": float("nan")}, "'sparsity' is nan"),
        ({"method": "dejavu"}, "'method' is 'dejavu': expected one of cats, chess"),
        ({"calibration": None}, "give 'calibration', made by effc.calibrate"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    model = Mlp(256, 320).eval()
    calibration = effc.calibrate(model, [torch.randn(1, 256)])
    with pytest.raises(OptionError, match=message):
        SparsifyActivations(**{"calibration": calibration, **options})


def test_it_excludes_other_forms_of_weights() -> None:
    model = Mlp(256, 320).eval()
    calibration = effc.calibrate(model, [torch.randn(1, 256)])
    with pytest.raises(OptionError, match=r"activation_sparsity: it excludes quantize: .* leave one of them out"):
        steps_of(Options(passes={"activation_sparsity": {"calibration": calibration}, "quantize": {}}))
