"""``passes={"sparsity": {}}``: channels that a model's zeros make needless go from it, and its results stay.

That the rewritten graph computes what eager PyTorch makes of it is held by ``check=True``, which compares every region.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from channel_cases import Random, removed
from pruned_models import compiled, forms, pruned, run
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import effc
from effc.compiler.capture.recording import Recording


def shapes(recording: Recording) -> dict[str, list[int]]:
    """Of the constants that stand for parameters that have lost channels, by name."""
    found = removed(recording)
    return {s.name: list(found.tensors[s.constant].shape) for s in found.slices}


def zeroed(model: nn.Module, layer: str, count: int, dim: int = 0, bias: bool = True) -> None:
    """Have the layer's first ``count`` channels along ``dim`` 0, and its bias there too."""
    with torch.no_grad():
        model.get_parameter(f"{layer}.weight").narrow(dim, 0, count).zero_()
        if bias and dim == 0 and model.get_submodule(layer).bias is not None:
            model.get_parameter(f"{layer}.bias")[:count] = 0


def layers() -> tuple[nn.Module, Tensor]:
    """Of 128 hidden units."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 24)).eval(), torch.randn(5, 32)


def same(found: Tensor, model: nn.Module, x: Tensor) -> bool:
    """Whether it is what the model gives in float64, to float32's precision."""
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
    return bool((found.double() - expected).norm() <= 1e-5 * expected.norm())


# -- what goes ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5, 6, 8])
def test_random_networks(seed: int) -> None:
    """Convolutions, norms, residuals, concatenations, gates and halves, in which some channels of most weights are 0."""
    torch.manual_seed(seed)
    model = Random(seed).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d) and torch.rand(()) < 0.8:
            kept = (torch.rand(len(layer.weight)) > 0.5).float()
            with torch.no_grad():  # three times, for results to depend on the input
                layer.weight.mul_(3 * kept.view(-1, *[1] * (layer.weight.dim() - 1)))
                if layer.bias is not None and torch.rand(()) < 0.7:
                    layer.bias.mul_(kept)
    x = torch.randn(2, 3, 9, 7)
    found, recording = run(model, x, {}, check=True)
    assert removed(recording).slices
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
    assert (found - expected).norm() <= 1e-4 * (expected - expected.flip(0)).norm()


def test_hidden_units() -> None:
    """Their constant goes into the bias of the layer behind."""
    model, x = layers()
    zeroed(model, "0", 80, bias=False)
    found, recording = run(model, x, {}, check=True)
    assert shapes(recording) == {"0.weight": [48, 32], "0.bias": [48], "2.weight": [24, 48]}
    assert same(found, model, x)
    notes = "\n".join(recording.notes)
    assert "sparsity: 62.5% of the elements of 2 weights go with channels that zeros make needless" in notes
    assert "0.weight loses 80 of 128 channels, with 1 weights that make or read the same ones" in notes


def test_masks_of_torch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 1)).eval()
    prune.ln_structured(model[0], "weight", 0.5, n=2, dim=0)
    x = torch.randn(1, 3, 9, 8)
    found, recording = run(model, x, {}, check=True)
    assert shapes(recording)["0.weight"] == [16, 3, 3, 3]
    with torch.no_grad():
        assert (found - model(x)).norm() <= 1e-5 * model(x).norm()


class Masked(nn.Module):
    """Activations that are multiplied with a mask of channels."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 8, 3, padding=1)
        self.register_buffer("mask", (torch.arange(32) % 2).view(1, 32, 1, 1).float())

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(torch.sigmoid(self.first(x)) * self.mask)
        return found


def test_masks_of_activations() -> None:
    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(2, 3, 7, 6)
    found, recording = run(model, x, {}, check=True)
    assert shapes(recording) == {
        "first.weight": [16, 3, 3, 3],
        "first.bias": [16],
        "mask": [1, 16, 1, 1],
        "second.weight": [8, 16, 3, 3],
    }
    assert same(found, model, x)


def test_channels_that_nothing_reads() -> None:
    """The weights that meet them are 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 24)).eval()
    zeroed(model, "2", 32, dim=1)
    x = torch.randn(5, 32)
    found, recording = run(model, x, {}, check=True)
    assert shapes(recording) == {"0.weight": [32, 32], "0.bias": [32], "2.weight": [24, 32]}
    assert same(found, model, x)


class Attention(nn.Module):
    """Four heads of 8 channels in a residual stream behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (p(y).view(*x.shape[:2], 4, 8).transpose(1, 2) for p in (self.query, self.key, self.value))
        found: Tensor = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return found


@pytest.mark.parametrize("layer", ["value", "out"])
def test_heads(layer: str) -> None:
    """Of values that are 0, or whose results meet weights that are."""
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(2, 5, 32)
    zeroed(model, layer, 16, dim=0 if layer == "value" else 1)
    found, recording = run(model, x, {}, check=True)
    cut = shapes(recording)
    assert [cut[f"{name}.weight"] for name in ("query", "key", "value", "out")] == [[16, 32]] * 3 + [[32, 16]]
    assert same(found, model, x)


class Block(nn.Module):
    """An inverted residual block with a gate: expansion, depthwise convolution, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.expand, self.norm1 = nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64)
        self.depthwise, self.norm2 = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), nn.BatchNorm2d(64)
        self.squeeze, self.excite = nn.Linear(64, 16), nn.Linear(16, 64)
        self.project, self.norm3 = nn.Conv2d(64, 16, 1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        y = F.hardswish(self.norm1(self.expand(x)))
        y = F.hardswish(self.norm2(self.depthwise(y)))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))[:, :, None, None]
        found: Tensor = x + self.norm3(self.project(y))
        return found


def test_a_block_with_norms_and_a_gate() -> None:
    """Channels are 0 from a norm's scale and shift on, and stay so in the gate's product, whatever the gate is."""
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(2, 3, 9, 7)
    for name in ("norm1", "norm2", "norm3"):
        nn.init.uniform_(model.get_parameter(f"{name}.weight"), 0.5, 1.5)
        nn.init.normal_(model.get_buffer(f"{name}.running_mean"))
    zeroed(model, "norm2", 32)
    found, recording = run(model, x, {}, check=True)
    cut = shapes(recording)
    assert cut["expand.weight"] == [32, 16, 1, 1]
    assert cut["depthwise.weight"] == [32, 1, 3, 3]
    assert cut["norm1.running_var"] == [32]
    assert cut["squeeze.weight"] == [16, 32]
    assert cut["excite.weight"] == [32, 16]
    assert cut["project.weight"] == [16, 32, 1, 1]
    assert same(found, model, x)


@pytest.mark.parametrize(("window", "goes"), [(1, True), (3, False)])
def test_numbers_behind_a_padded_convolution(window: int, goes: bool) -> None:
    """Are not the same at the borders; zeros are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Sigmoid(), nn.Conv2d(32, 8, window, padding=window // 2)).eval()
    zeroed(model, "0", 16)
    x = torch.randn(2, 3, 6, 5)
    found, recording = run(model, x, {}, check=True)
    assert bool(removed(recording).slices) == goes
    assert same(found, model, x)
    model[1] = nn.ReLU()
    found, recording = run(model, x, {}, check=True)
    assert shapes(recording)["2.weight"] == [8, 16, window, window]
    assert same(found, model, x)


def test_a_layer_that_runs_twice() -> None:
    """On channels of two numbers: they stay."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.shared = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.shared(F.relu(self.one(x))) * self.shared(F.relu(self.other(x)))
            return found

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(5, 32)
    zeroed(model, "one", 32)
    zeroed(model, "other", 32, bias=False)
    with torch.no_grad():
        model.other.bias[:16] = -1
        model.other.bias[16:32] = 1
    found, recording = run(model, x, {}, check=True)
    assert shapes(recording) == {
        "one.weight": [48, 32],
        "one.bias": [48],
        "other.weight": [48, 32],
        "other.bias": [48],
        "shared.weight": [8, 48],
    }
    assert same(found, model, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 24)).eval().to(dtype)
    zeroed(model, "0", 80, bias=False)
    x = torch.randn(5, 32, dtype=dtype)
    found, recording = run(model, x, {}, check=True)
    assert shapes(recording)["2.weight"] == [24, 48]
    assert found.dtype == dtype
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
    assert (found.double() - expected).norm() <= 2e-2 * expected.norm()


def test_autocast_and_dynamic_sizes() -> None:
    model, x = layers()
    zeroed(model, "0", 80, bias=False)
    options: dict[str, Any] = {"passes": {"sparsity": {}}}
    fast = torch.compile(model, backend="effc", dynamic=True, options=options)
    with torch.no_grad():
        for rows in (3, 1, 17):
            x = torch.randn(rows, 32)
            assert same(fast(x), model, x)
            with torch.autocast("cpu", torch.bfloat16):
                found, expected = fast(x), model(x)
            assert found.dtype == expected.dtype
            assert (found - expected).norm() <= 2e-2 * expected.norm()


# -- what stays ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["a weight", "few", "infinite", "nan", "skip", "keep"])
def test_channels_that_stay(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 24)).eval()
    zeroed(model, "0", 15 if how == "few" else 16)
    options: dict[str, dict[str, Any]] = {"skip": {"skip": ["2.*"]}, "keep": {"keep_channels": True}}
    with torch.no_grad():
        if how == "a weight":
            model.get_parameter("0.weight")[3, 5] = 1e-30
        if how in ("infinite", "nan"):
            model.get_parameter("2.weight")[2, 3] = torch.inf if how == "infinite" else torch.nan
    x = torch.randn(5, 32)
    found, recording = run(model, x, options.get(how, {}))
    assert not any(r.sources for r in recording.compressed[0].removed)
    with torch.no_grad():
        torch.testing.assert_close(found, model(x), equal_nan=True)


@pytest.mark.parametrize(("pattern", "some"), [("16x1", False), ("unstructured", True)])
def test_patterns_of_other_zeros(pattern: str, some: bool) -> None:
    """Channels stay where without them blocks would lie at other places, at which no kernel could rely on them."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval(), torch.randn(5, 64)
    pruned(model, pattern, 0.8, ("0.weight",))
    with torch.no_grad():
        model.get_parameter("2.weight")[:, ::8] = 0
    found, recording = run(model, x, {}, check=True)
    assert bool(removed(recording).slices) == some
    assert str(forms(recording)["0.weight"].pattern) == pattern
    assert same(found, model, x)


def test_channels_of_results_stay_as_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 128)).eval()
    zeroed(model, "0", 64)
    found, recording = run(model, torch.randn(5, 32), {}, check=True)
    assert not removed(recording).slices
    assert {name: str(form.pattern) for name, form in forms(recording).items()} == {"0.weight": "channel"}
    assert not found[:, :64].any()


def test_keep_channels_is_about_zeros_that_are_there() -> None:
    model = nn.Sequential(nn.Linear(32, 64))
    for given, message in (
        ({"keep_channels": 1}, "'keep_channels' is 1: expected True or False"),
        ({"keep_channels": True, "pattern": "2:4"}, "'keep_channels' is about zeros that are there"),
    ):
        with pytest.raises(Exception, match=message):
            run(model, torch.randn(5, 32), given)


# -- weights that change ------------------------------------------------------------------------------------------
def test_new_weights() -> None:
    """With the same zeros are taken, the numbers in the bias too; without them the exact model runs."""
    model, x = layers()
    zeroed(model, "0", 64, bias=False)
    fast = compiled(model, passes={"sparsity": {}})
    with torch.no_grad():
        assert same(fast(x), model, x)
        model.get_parameter("2.weight").mul_(3)
        model.get_parameter("0.weight")[64:].mul_(2)
        with pytest.warns(UserWarning, match="not the weights that effc compressed"):
            assert same(fast(x), model, x)
        effc.refresh(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert same(fast(x), model, x)
        for tensor, place in (
            (model.get_parameter("0.weight"), (3, 4)),
            (model.get_parameter("0.bias"), (5,)),
            (model.get_parameter("2.weight"), (0, 7)),
        ):
            old = tensor[place].item()
            tensor[place] = torch.nan if tensor is model.get_parameter("2.weight") else old + 1
            effc.refresh(model)
            with pytest.warns(UserWarning, match="needs channels that zeros made needless when it was compiled"):
                found = fast(x)
            torch.testing.assert_close(found, model(x), equal_nan=True)
            tensor[place] = old
            effc.refresh(model)
            assert same(fast(x), model, x)


# -- with everything else -----------------------------------------------------------------------------------------
def test_what_is_left_may_be_sparse_and_quantized() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    zeroed(model, "0", 64)
    with torch.no_grad():
        model.get_parameter("2.weight")[:, 64:].mul_(torch.rand(64, 64) > 0.9)
    x = torch.randn(32, 64)
    found, recording = run(model, x, {}, check=True)
    assert same(found, model, x)
    assert {name: form.weight.shape for name, form in forms(recording).items()} == {"2.weight": (64, 64)}
    quantize = {"activations": "token", "calibration": effc.calibrate(model, [x])}
    with torch.no_grad():
        quantized = compiled(model, passes={"sparsity": {}, "quantize": quantize})(x)
        assert 0 < (quantized - found).norm() < 0.03 * found.norm()


def test_saved(tmp_path: Path) -> None:
    model, x = layers()
    zeroed(model, "0", 64, bias=False)
    effc.save(model, x, tmp_path / "model", options={"passes": {"sparsity": {}}})
    assert same(effc.load(tmp_path / "model")(x), model, x)
