"""Factors and pruned weights in bytes: what meets them is told from what calibration has kept, and what cannot be told stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_low_rank_convolutions import filters
from test_quantize import codes_read, compiled, off, tied
from torch import Tensor, nn

import effc
from effc.compiler.capture import record
from effc.compiler.capture.recording import Recording

BYTES: dict[str, Any] = {"activations": "tensor"}


def run(model: nn.Module, x: Tensor, passes: dict[str, Any], check: bool = False) -> tuple[Tensor, Recording]:
    torch._dynamo.reset()
    with torch.no_grad(), record() as recording:
        return compiled(model, passes=passes, check=check)(x), recording


def between(found: Tensor, other: Tensor) -> float:
    return float((found - other).norm() / other.norm())


@pytest.mark.parametrize("low_rank", [{"rank": 32}, {"parameters": 0.4}])
def test_factors_of_convolutions(low_rank: dict[str, Any]) -> None:
    """Windows by Tucker-2 and as one-way filters, strided, dilated, in groups: all kernels of 1,024 elements and more read codes."""
    model, x = filters()
    calibration = effc.calibrate(model, [x, torch.randn_like(x), torch.randn_like(x)], held_out=0)
    factors, recording = run(model, x, {"low_rank": low_rank})
    (compressed,) = recording.compressed
    large = {
        f"{name}:{role}"
        for name, stored in compressed.stages[0].weights.items()
        for role, part in stored.form.parts().items()
        if part.dim() > 2 and part.numel() >= 1024
    }
    found, recording = run(model, x, {"low_rank": low_rank, "quantize": {**BYTES, "calibration": calibration}})
    assert large <= codes_read(recording)
    assert 0 < between(found, factors) < 0.06
    assert not any("the calibration has not seen it" in note for note in recording.notes)


@pytest.mark.parametrize("activations", ["token", "tensor"])
def test_factors_of_matrices(activations: str) -> None:
    model, tokens = tied()
    calibration = effc.calibrate(model, [tokens, torch.randint(0, 100, (4, 7))], held_out=0)
    low_rank = {"rank": 32, "skip": ["embed*"]}
    factors, _ = run(model, tokens, {"low_rank": low_rank})
    quantize = {"activations": activations, "calibration": calibration}
    found, recording = run(model, tokens, {"low_rank": low_rank, "quantize": quantize})
    assert {f"{layer}.weight:{side}" for layer in ("query", "out") for side in ("left", "right")} <= codes_read(
        recording
    )
    assert 0 < between(found, factors) < 0.05


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_pruned_windows(pattern: str) -> None:
    model, x = filters()
    calibration = effc.calibrate(model, [x, torch.randn_like(x)], held_out=0)
    sparsity = {"pattern": pattern, "skip": ["depth*", "first*"]} | ({} if ":" in pattern else {"sparsity": 0.5})
    pruned, _ = run(model, x, {"sparsity": sparsity})
    found, recording = run(model, x, {"sparsity": sparsity, "quantize": {**BYTES, "calibration": calibration}})
    wide = {"strided.weight", "shared.weight", "grouped.weight"}
    assert {f"{name}:pruned" for name in wide} <= codes_read(recording)
    assert 0 < between(found, pruned) < 0.04


def test_what_no_calibration_tells_stays() -> None:
    """What lies behind factors of a layer that no calibration has seen; weights alone of a convolution."""
    model, x = filters()
    calibration = effc.calibrate(model, [x])
    notes = "\n".join(run(model, x, {"low_rank": {"rank": 32}, "quantize": {}})[1].notes)
    assert "shared.weight:kernel0 stays as it is: a convolution gains only where its activations are bytes too" in notes
    sites = {name: s for name, s in calibration.sites.items() if name != "shared.weight"}
    quantize = {**BYTES, "calibration": replace(calibration, sites=sites, digest="other")}
    notes = "\n".join(run(model, x, {"low_rank": {"rank": 32}, "quantize": quantize})[1].notes)
    assert "shared.weight:kernel1 stays as it is: the calibration has not seen it" in notes
    assert "grouped.weight:kernel1 stays" not in notes


def test_a_calibration_of_other_channels_is_an_error_that_names_the_factor() -> None:
    model, _ = tied()
    seen = effc.calibrate(nn.Linear(96, 8).eval(), [torch.randn(4, 96)]).sites["weight"]
    calibration = effc.calibrate(model, [torch.randint(0, 100, (2, 7))])
    wrong = replace(calibration, sites={**calibration.sites, "query.weight": seen})
    passes = {"low_rank": {"rank": 32, "skip": ["embed*"]}, "quantize": {**BYTES, "calibration": wrong}}
    with pytest.raises(Exception, match=r"query\.weight:right: its calibration has 96 channels and the weight 128"):
        run(model, torch.randint(0, 100, (2, 7)), passes)


def test_new_values_that_reach_further_run_exactly() -> None:
    """Ranges between factors follow from the factors: twice the weight would be cut off."""
    model, x = filters()
    quantize = {**BYTES, "calibration": effc.calibrate(model, [x])}
    fast = compiled(model, passes={"low_rank": {"rank": 32}, "quantize": quantize})
    with torch.no_grad():
        assert off(fast(x), model, x) > 1e-3
        model.get_parameter("shared.weight").mul_(2)
        effc.refresh(model)
        with pytest.warns(UserWarning, match=r"what meets shared\.weight:kernel[12] has another range for it"):
            assert off(fast(x), model, x) < 1e-5
