"""Weights that a model computes from a parameter and a mask in each call, as ``torch.nn.utils.prune`` and parametrizations do."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.utils.parametrize
import torch.nn.utils.prune
from pruned_models import compiled, forms, packed, run, same
from torch import Tensor, nn

import effc
from effc.compiler.capture import record


class Mask(nn.Module):
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def masked(how: str) -> tuple[nn.Sequential, Tensor]:
    """A model whose zeros are a mask, in each call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Conv1d(1, 1, 1), nn.Linear(256, 64)).eval()
    for place in (0, 3):
        layer, shape = model[place], model.get_parameter(f"{place}.weight").shape
        if how == "prune.l1_unstructured":
            torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.9)
        elif how == "prune.ln_structured":
            torch.nn.utils.prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)
        elif how == "prune.custom_from_mask":
            blocks = torch.rand(shape[0] // 16, shape[1]) > 0.8
            torch.nn.utils.prune.custom_from_mask(layer, "weight", blocks.repeat_interleave(16, 0))
        else:
            mask = torch.rand(shape) > 0.9
            torch.nn.utils.parametrize.register_parametrization(layer, "weight", Mask(mask))
    return model, torch.randn(3, 1, 128)


@pytest.mark.parametrize(
    ("how", "pattern"),
    [
        ("prune.l1_unstructured", "unstructured"),
        ("prune.ln_structured", "channel"),
        ("prune.custom_from_mask", "16x1"),
        ("parametrize", "unstructured"),
    ],
)
def test_masks_of_torch_are_zeros_that_are_there(how: str, pattern: str) -> None:
    model, x = masked(how)
    found, recording = run(model, x, {}, check=True)
    assert same(found, model, x)
    assert {name: str(form.pattern) for name, form in forms(recording).items()} == {
        "0.weight": pattern,
        "3.weight": pattern,
    }
    if pattern != "channel":
        assert packed(recording).count("sparse_panels") == 2


def test_a_mask_that_changes() -> None:
    model, x = masked("prune.custom_from_mask")
    fast = compiled(model, passes={"sparsity": {}})
    with torch.no_grad():
        assert same(fast(x), model, x)
        model.get_buffer("0.weight_mask")[:16] = 0
        with pytest.warns(UserWarning, match="not the weights that effc compressed"):
            assert same(fast(x), model, x)
        effc.refresh(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert same(fast(x), model, x)


def test_masked_weights_may_be_quantized() -> None:
    model, x = masked("prune.l1_unstructured")
    with torch.no_grad(), record() as recording:
        found = compiled(model, passes={"quantize": {}}, check=True)(x)
        expected = model(x)
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.02
    (compressed,) = recording.compressed
    assert [set(stage.weights) for stage in compressed.stages] == [{"0.weight", "3.weight"}]


def test_a_weight_of_a_removed_mask_has_its_zeros() -> None:
    model, x = masked("prune.custom_from_mask")
    for place in (0, 3):
        torch.nn.utils.prune.remove(model.get_submodule(str(place)), "weight")
    found, recording = run(model, x, {}, check=True)
    assert same(found, model, x)
    assert {str(form.pattern) for form in forms(recording).values()} == {"16x1"}
