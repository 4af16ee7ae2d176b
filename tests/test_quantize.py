"""``passes={"quantize": …}``: which weights are quantized, what then runs, and what happens when they change.

That a quantized graph computes what eager PyTorch makes of the same graph is held by ``check=True``, which compares every region.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import effc
from effc.compiler.capture import record
from effc.compiler.capture.recording import Recording
from effc.compiler.compress.compressor import Compressed


class Tied(nn.Module):
    """An embedding whose table is the head too, and two layers that read one activation."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 128)
        self.query = nn.Linear(128, 128)
        self.value = nn.Linear(128, 64, bias=False)
        self.out = nn.Linear(128, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        y = torch.relu(self.query(x)) + F.pad(self.value(x), (0, 64))
        return F.linear(self.out(y), self.embedding.weight)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.groups = nn.Conv2d(32, 64, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(64, 16, 2, stride=2)
        self.head = nn.Linear(16, 70)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.up(torch.relu(self.groups(x))))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def tied() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Tied().eval(), torch.randint(0, 100, (2, 7))


def convolutions() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Convolutions().eval()
    nn.init.uniform_(model.get_buffer("norm.running_mean"), -1, 1)
    return model, torch.randn(2, 3, 18, 14)


def compiled(model: nn.Module, **options: Any) -> Callable[..., Tensor]:
    return torch.compile(model, backend="effc", options=options)


def run(model: nn.Module, x: Tensor, quantize: dict[str, Any], **options: Any) -> tuple[Tensor, Recording]:
    with torch.no_grad(), record() as recording:
        return compiled(model, passes={"quantize": quantize}, **options)(x), recording


def off(found: Tensor, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = model(x)
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def codes_read(recording: Recording) -> set[str]:
    """Names of the parameters whose codes kernels read, directly or packed."""
    found = set()
    for program, _ in recording.programs:
        for part in [program, *([program.prepare] if program.prepare is not None else [])]:
            found |= {i.param.removesuffix(":codes") for i in part.inputs if i.param.endswith(":codes")}
    return found


def smoothings(compressed: Compressed) -> dict[str, Tensor | None]:
    (stage,) = compressed.stages
    return {name: stored.form.parts().get("smoothing") for name, stored in stage.weights.items()}


def weights_read(recording: Recording) -> set[str]:
    return {i.param for program, _ in recording.programs for i in program.inputs if i.param and ":" not in i.param}


@pytest.mark.parametrize(
    ("quantize", "error"),
    [
        ({}, 0.02),
        ({"group": 32}, 0.02),
        ({"symmetric": False}, 0.02),
        ({"activations": "token"}, 0.03),
        ({"weights": "int4"}, 0.25),
        ({"weights": "int4", "group": 32, "symmetric": True}, 0.25),
        ({"weights": "int4", "clipping": "mse", "activations": "token"}, 0.25),
        ({"weights": "nf4"}, 0.25),
        ({"weights": "nf4", "scales": "double"}, 0.25),
        ({"grouping": "finequant", "weights": "int4", "group": 16}, 0.25),
    ],
)  # fmt: skip
def test_every_format_runs_as_eager_runs_it(quantize: dict[str, Any], error: float) -> None:
    model, tokens = tied()
    found, recording = run(model, tokens, quantize, check=True, fallback="error")
    assert 0 < off(found, model, tokens) < error
    assert codes_read(recording) == {"embedding.weight", "query.weight", "value.weight", "out.weight"}
    assert weights_read(recording) == {"query.bias", "out.bias"}


@pytest.mark.parametrize(
    "recipe",
    [
        {"smoothing": "awq"},
        {"smoothing": "smoothquant", "activations": "token"},
        {"rounding": "gptq"},
        {"activations": "tensor"},
        {"activations": "tensor", "smoothing": "smoothquant"},
        {"smoothing": "awq", "rounding": "gptq", "weights": "int4"},
    ],
)
def test_recipes_that_look_at_activations(recipe: dict[str, Any]) -> None:
    model, tokens = tied()
    calibration = effc.calibrate(model, [tokens, tokens.flip(0)])
    found, recording = run(model, tokens, {**recipe, "calibration": calibration}, check=True)
    assert 0 < off(found, model, tokens) < (0.25 if "weights" in recipe else 0.03)
    assert "query.weight" in codes_read(recording)


@pytest.mark.parametrize(
    "recipe", [{"smoothing": "smoothquant"}, {"smoothing": "awq", "rounding": "gptq", "clipping": "mse"}]
)
def test_a_table_that_is_only_looked_up_needs_no_activations(recipe: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, tokens = nn.Sequential(nn.Embedding(100, 128), nn.Linear(128, 64)).eval(), torch.randint(0, 100, (2, 7))
    calibration = effc.calibrate(model, [tokens])
    found, recording = run(model, tokens, {**recipe, "calibration": calibration}, check=True)
    assert 0 < off(found, model, tokens) < 0.03
    assert codes_read(recording) == {"0.weight", "1.weight"}
    (compressed,) = recording.compressed
    assert smoothings(compressed)["0.weight"] is None


def test_layers_that_read_one_activation_share_its_codes() -> None:
    """The smoothing and the rows' scales of ``query`` and ``value`` are made once."""
    model, tokens = tied()
    calibration = effc.calibrate(model, [tokens])
    options = {
        "smoothing": "smoothquant",
        "activations": "token",
        "calibration": calibration,
        "skip": ["embed*", "out*"],
    }
    _, recording = run(model, tokens, options)
    names = [call.name for program, _ in recording.programs for call in program.calls]
    assert sum("absf" in name for name in names) == 1
    (compressed,) = recording.compressed
    shared = smoothings(compressed)
    assert set(shared) == {"query.weight", "value.weight"}
    assert torch.equal(shared["query.weight"], shared["value.weight"])  # type: ignore[arg-type]


def test_convolutions_run_in_bytes_with_calibration() -> None:
    model, x = convolutions()
    calibration = effc.calibrate(model, [x, torch.randn_like(x)])
    found, recording = run(model, x, {"activations": "tensor", "calibration": calibration}, check=True)
    assert 0 < off(found, model, x) < 0.03
    assert codes_read(recording) == {"groups.weight", "head.weight"}
    notes = "\n".join(recording.notes)
    assert "up.weight stays as it is: aten.convolution.default reads it" in notes
    assert "stem.weight stays as it is: it has fewer than 1024 elements" in notes


def test_weights_alone_of_a_convolution_stay() -> None:
    model, x = convolutions()
    found, recording = run(model, x, {})
    assert off(found, model, x) < 0.02
    assert codes_read(recording) == {"head.weight"}
    assert any("groups.weight stays as it is: a convolution gains only where" in note for note in recording.notes)


def test_what_is_skipped_stays_exact() -> None:
    model, tokens = tied()
    found, recording = run(model, tokens, {"weights": "int4", "skip": ["*"]})
    assert off(found, model, tokens) < 1e-5
    assert codes_read(recording) == set()
    assert any("option 'skip' names it" in note for note in recording.notes)


def test_groups_that_do_not_divide_leave_the_weight() -> None:
    model, tokens = tied()
    found, recording = run(model, tokens, {"weights": "int4", "group": 48})
    assert off(found, model, tokens) < 1e-5
    assert codes_read(recording) == set()
    assert "out.weight stays as it is: groups of 48 do not divide its sums of 128" in recording.notes


class Transposed(nn.Module):
    """A weight [in, out], as GPT-2's layers hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(65, 48) / 8)
        self.bias = nn.Parameter(torch.randn(48))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize("activations", ["float", "token"])
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_weights_with_the_sum_first(activations: str, rows: int) -> None:
    torch.manual_seed(0)
    model, x = Transposed().eval(), torch.randn(rows, 65)
    found, recording = run(model, x, {"activations": activations}, check=True)
    assert 0 < off(found, model, x) < 0.02
    assert codes_read(recording) == {"weight"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models(dtype: torch.dtype) -> None:
    model, tokens = tied()
    found, recording = run(model.to(dtype), tokens, {"activations": "token"})
    assert found.dtype == dtype
    assert off(found, model, tokens) < 0.05
    assert "query.weight" in codes_read(recording)


def test_dynamic_sizes() -> None:
    model, _ = tied()
    options: dict[str, Any] = {"passes": {"quantize": {"activations": "token"}}}
    with torch.no_grad(), record() as recording:
        fast = torch.compile(model, backend="effc", dynamic=True, options=options)
        for length in (7, 1, 19):
            more = torch.randint(0, 100, (2, length))
            assert off(fast(more), model, more) < 0.03
    assert len(recording.compressed) == 2  # sizes of 1 are compiled apart


# -- weights that change ------------------------------------------------------------------------------------------
def test_after_a_change_the_exact_model_runs_until_refresh() -> None:
    model, tokens = tied()
    fast = compiled(model, passes={"quantize": {"weights": "int4"}})
    with torch.no_grad():
        assert off(fast(tokens), model, tokens) > 1e-3
        model.get_parameter("query.weight").mul_(2)
        with pytest.warns(UserWarning, match="not the weights that effc compressed"):
            assert off(fast(tokens), model, tokens) < 1e-5
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert off(fast(tokens), model, tokens) < 1e-5
            effc.refresh(model)
            again = off(fast(tokens), model, tokens)
    assert 1e-3 < again < 0.25


def test_a_change_of_what_is_not_compressed_changes_nothing() -> None:
    model, tokens = tied()
    fast = compiled(model, passes={"quantize": {"weights": "int4"}})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(tokens)
        model.get_parameter("query.bias").add_(1.0)
        assert 1e-3 < off(fast(tokens), model, tokens) < 0.25


def test_saved_and_loaded(tmp_path: Path) -> None:
    """What is quantized is kept in its codes alone."""
    model, tokens = tied()
    options = {"passes": {"quantize": {"weights": "int8", "activations": "token"}}}
    effc.save(model, tokens, tmp_path / "small", options=options)
    effc.save(model, tokens, tmp_path / "plain")
    with torch.no_grad():
        fast = compiled(model, **options)
        assert torch.equal(effc.load(tmp_path / "small")(tokens), fast(tokens))
    sizes = [sum(f.stat().st_size for f in (tmp_path / name).iterdir()) for name in ("small", "plain")]
    saved = 2 * 4 * sum(p.numel() for p in model.parameters()) - 3 * sum(p.numel() for p in model.parameters())
    assert sizes[0] < sizes[1] - saved / 2


# -- refusals -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("quantize", "text"),
    [
        ({"weights": "int3"}, "weights is one of int8, int4, int2, nf4, not 'int3'"),
        ({"weight": "int8"}, "pass 'quantize' has no option 'weight'; did you mean 'weights'"),
        ({"group": 2.5}, "'group' is 2.5: expected a whole number of elements"),
        ({"group": -1}, "-1"),
        ({"weights": "nf4", "symmetric": False}, "nf4 has no zero points"),
        ({"smoothing": "awq"}, "smoothing='awq' needs the activations: give 'calibration'"),
        ({"rounding": "gptq"}, "rounding='gptq' needs the activations"),
        ({"activations": "tensor"}, "activations='tensor' needs the activations"),
        ({"calibration": 3}, "'calibration' is 3: expected what effc.calibrate returned"),
        ({"skip": "head"}, "'skip' is 'head': expected a list of names"),
    ],
)  # fmt: skip
def test_wrong_options(quantize: dict[str, Any], text: str) -> None:
    with pytest.raises(effc.OptionError, match=text):
        effc.Options(passes={"quantize": quantize})


def test_gradients_and_quantization_exclude_each_other() -> None:
    model, tokens = tied()
    with pytest.raises(Exception, match="the rewrite quantize and gradients exclude each other"):
        compiled(model, passes={"quantize": {}})(tokens)


def test_a_weight_with_nan_is_an_error_that_names_it() -> None:
    model, tokens = tied()
    with torch.no_grad():
        model.get_parameter("query.weight")[3, 4] = float("nan")
        with pytest.raises(Exception, match=r"query\.weight: the weight holds NaN, infinity"):
            compiled(model, passes={"quantize": {}})(tokens)
