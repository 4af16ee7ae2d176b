"""Patterns of sparsity: how they are written, which weights they divide, the masks they make, and how zeros that are there are found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import effc
from effc.compiler.compress.pruning.detect import best_fit, fits
from effc.compiler.compress.pruning.masks import kept, laid_back, laid_out
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.pattern import Pattern
from effc.passes.sparsity import Sparsify

MASKED = ["unstructured", "2:4", "1:4", "4:8", "3:5", "1x16", "4x1", "16x1", "8x4", "3x5", "1xkernel", "16xkernel"]
PATTERNS = [*MASKED, "channel"]
#: Of linear layers and convolutions that all of them divide.
SHAPES = [(48, 80), (144, 240), (48, 80, 3, 3), (48, 80, 1, 1), (48, 80, 2)]


def holds(weight: Tensor, text: str) -> bool:
    """Whether the zeros of ``weight`` ``[out, channels, window…]`` are by the pattern."""
    there = (weight != 0).reshape(*weight.shape[:2], -1)
    out, channels, positions = there.shape
    if ":" in text:
        n, m = map(int, text.split(":"))
        return int(there.reshape(out, channels // m, m, positions).sum(2).max()) <= n
    if "kernel" in text:
        counts = there.reshape(-1, int(text.removesuffix("xkernel")), channels, positions).sum((1, 3))
        return set(counts.flatten().tolist()) <= {0, int(text.removesuffix("xkernel")) * positions}
    if "x" in text:
        rows, columns = map(int, text.split("x"))
        counts = there.reshape(out // rows, rows, channels // columns, columns, positions).sum((1, 3))
        return set(counts.flatten().tolist()) <= {0, rows * columns}
    return text == "unstructured" or set(there.sum((1, 2)).tolist()) <= {0, channels * positions}


def units(shape: tuple[int, ...], pattern: Pattern) -> int:
    """What is kept or pruned as a whole."""
    window = torch.Size(shape[2:]).numel() if pattern.kind == "kernel" else 1
    return torch.Size(shape).numel() // (pattern.rows * pattern.columns * window)


# -- text ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", [*PATTERNS, "4:4", "1:1", "128x128"])
def test_a_pattern_reads_what_it_writes(text: str) -> None:
    assert str(Pattern.parse(text)) == text
    assert Pattern.parse(text) == Pattern.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "sparsity pattern '': expected 'unstructured', N:M as '2:4', a block"),
        ("structured", "expected 'unstructured'"),
        ("2:4:8", "expected"),
        ("-1:4", "expected"),
        ("2.5:4", "expected"),
        ("2 : 4", "expected"),
        ("2:4\n", "expected"),
        ("²:4", "expected"),
        ("4:2", "sparsity pattern '4:2': at least 1 and at most all of a group are kept"),
        ("0:4", "at least 1"),
        ("0:0", "at least 1"),
        ("0x4", "a block has 2 elements or more"),
        ("1x1", "of single ones it is 'unstructured'"),
        ("0xkernel", "a group has 1 output channel or more"),
        ("4:kernel", "expected"),
    ],
)
def test_nonsense_is_refused(text: str, why: str) -> None:
    with pytest.raises(OptionError) as caught:
        Pattern.parse(text)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shape", "why"),
    [
        ("2:4", (8, 30), "30 input channels are no multiple of 4"),
        ("1x16", (8, 24, 3, 3), "24 input channels are no multiple of 16"),  # though the sum of 216 is one of 8
        ("16x1", (24, 8), "24 output channels are no multiple of 16"),
        ("4x8", (6, 16), "6 output channels are no multiple of 4"),
        ("4xkernel", (6, 16, 3, 3), "6 output channels are no multiple of 4"),
    ],
)
def test_a_pattern_that_does_not_divide_names_layer_pattern_and_shape(text: str, shape: list[int], why: str) -> None:
    found = Pattern.parse(text).misfit("blocks.3.up.weight", shape)
    assert found == (
        f"blocks.3.up.weight: the sparsity pattern '{text}' does not divide a weight of shape {list(shape)}: {why}"
    )


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_pattern_that_divides_fits(text: str, shape: tuple[int, ...]) -> None:
    assert Pattern.parse(text).misfit("w", shape) == ""


# -- masks --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPES)
def test_the_layout_has_an_inverse(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    laid = laid_out(weight)
    assert laid.shape == (shape[0], weight[0, 0].numel(), shape[1])
    assert torch.equal(laid[3, -1], weight[3].reshape(shape[1], -1)[:, -1])
    assert torch.equal(laid_back(laid, weight.shape), weight)


@pytest.mark.parametrize("text", MASKED)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("by_output", [False, True])
def test_masks_keep_the_pattern_and_the_share(text: str, shape: tuple[int, ...], by_output: bool) -> None:
    pattern, scores = Pattern.parse(text), torch.rand(shape)
    for sparsity in [pattern.sparsity] if pattern.sparsity else [0.05, 0.5, 0.77, 0.95]:
        mask = laid_back(kept(laid_out(scores), pattern, sparsity, by_output), scores.shape)
        assert holds(mask, text)
        found = 1 - float(mask.double().mean())
        assert abs(found - sparsity) <= 0.5 / units(shape, pattern) + 1e-9
        if not by_output and pattern.kind == "unstructured":
            assert float(scores[mask].min()) >= float(scores[~mask].max())


def test_by_output_every_output_loses_the_same() -> None:
    scores = torch.rand(16, 1, 64) * torch.arange(1, 17)[:, None, None]
    mask = kept(scores, Pattern.unstructured(), 0.75, by_output=True)
    assert mask.sum((1, 2)).tolist() == [16] * 16
    assert kept(scores, Pattern.unstructured(), 0.75).sum((1, 2)).tolist() != [16] * 16
    blocks = kept(scores, Pattern.block(4, 16), 0.5, by_output=True)
    assert blocks.sum((1, 2)).tolist() == [32] * 16


@pytest.mark.parametrize("text", MASKED)
def test_something_stays(text: str) -> None:
    pattern = Pattern.parse(text)
    assert bool(kept(torch.rand(48, 1, 80), pattern, pattern.sparsity or 0.99999).any())


def test_scores_that_are_equal_keep_the_share() -> None:
    """Ties, as of a weight that has zeros already."""
    for text in MASKED:
        pattern = Pattern.parse(text)
        mask = kept(torch.zeros(48, 1, 80), pattern, pattern.sparsity or 0.5)
        assert float(mask.double().mean()) == pytest.approx(1 - (pattern.sparsity or 0.5))


# -- detection ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["unstructured", "2:4", "1:4", "2:8", "3:8", "3:16", "1x16", "4x1", "16x1", "8x8"])  # fmt: skip
@pytest.mark.parametrize("shape", [(48, 96), (64, 160, 3, 3)])
def test_a_pattern_is_found_again(text: str, shape: tuple[int, ...]) -> None:
    pattern = Pattern.parse(text)
    sparsity = pattern.sparsity or 0.7
    mask = kept(laid_out(torch.rand(shape)), pattern, sparsity)
    weight = torch.randn(shape) * laid_back(mask, torch.Size(shape))
    found = best_fit(weight)
    assert found is not None
    assert found.pattern == pattern
    assert found.stored == pytest.approx(float((weight != 0).double().mean()), abs=1e-9)


def test_channels_are_found() -> None:
    weight = torch.randn(64, 96, 3, 3)
    weight[torch.randperm(64)[:40]] = 0
    found = best_fit(weight)
    assert found is not None
    assert found.pattern == Pattern.channel()
    assert found.stored == pytest.approx(24 / 64)


def test_what_is_stored_holds_all_that_is_not_zero() -> None:
    weight = torch.randn(32, 64) * (torch.rand(32, 64) > 0.97)
    for fit in fits(weight):
        assert fit.stored * weight.numel() >= int((weight != 0).sum())
    stored = {str(fit.pattern): fit.stored for fit in fits(weight)}
    tiles = (weight != 0).reshape(2, 16, 64).any(1)
    assert stored["16x1"] == pytest.approx(float(tiles.double().mean()))
    assert stored["unstructured"] == pytest.approx(float((weight != 0).double().mean()))


def test_one_element_breaks_a_pattern() -> None:
    weight = torch.randn(16, 32) * torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(8)
    assert "2:4" in {str(fit.pattern) for fit in fits(weight)}
    weight[7, 8] = 1e-30
    assert {"3:4", "3:8"} & {str(fit.pattern) for fit in fits(weight)} == {"3:4"}
    weight[7, 8] = float("nan")
    assert "2:4" not in {str(fit.pattern) for fit in fits(weight)}
    weight[7, 8] = -0.0
    assert "2:4" in {str(fit.pattern) for fit in fits(weight)}


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
def test_few_zeros_are_no_pattern(share: float) -> None:
    """Indices would take more than they save."""
    assert best_fit(torch.randn(64, 64) * (torch.rand(64, 64) >= share)) is None


def test_shapes_that_nothing_divides() -> None:
    weight = torch.randn(7, 13) * (torch.rand(7, 13) > 0.9)
    assert {fit.pattern.kind for fit in fits(weight)} <= {"unstructured", "channel"}
    found = best_fit(torch.zeros(1, 1))
    assert found is not None
    assert found.stored == 0


# -- options ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pattern": "2;4"}, "sparsity pattern '2;4': expected 'unstructured'"),
        ({"pattern": "exists"}, "or 'existing'"),
        ({"pattern": 4}, "'pattern' is 4: expected 'existing', 'unstructured'"),
        ({"pattern": "unstructured"}, "pattern='unstructured' needs 'sparsity', the share of zeros"),
        ({"pattern": "16x1"}, "pattern='16x1' needs 'sparsity'"),
        ({"pattern": "channel", "sparsity": 1}, "'sparsity' is 1: expected the share of zeros, above 0 and below 1"),
        ({"pattern": "channel", "sparsity": 0.0}, "'sparsity' is 0.0: expected"),
        ({"pattern": "channel", "sparsity": float("nan")}, "'sparsity' is nan: expected"),
        ({"pattern": "2:4", "sparsity": 0.75}, "pattern='2:4' makes 0.5 of a weight zeros, not 0.75"),
        ({"pattern": "4:4"}, "pattern='4:4' keeps everything"),
        ({"pattern": "2:4", "method": "obs"}, "'method' is 'obs': expected one of magnitude, wanda, sparsegpt"),
        ({"pattern": "2:4", "method": "wanda"}, "method='wanda' needs the activations: give 'calibration'"),
        ({"pattern": "2:4", "method": "sparsegpt"}, "method='sparsegpt' needs the activations"),
        ({"sparsity": 0.5}, "'sparsity' says how to prune, and pattern='existing' prunes nothing"),
        ({"method": "wanda"}, "'method' says how to prune, and pattern='existing' prunes nothing"),
        ({"calibration": 3}, "'calibration' is 3: expected what effc.calibrate returned"),
        ({"skip": "head"}, "'skip' is 'head': expected a list of names"),
        ({"patern": "2:4"}, "pass 'sparsity' has no option 'patern'; did you mean 'pattern'"),
    ],
)  # fmt: skip
def test_wrong_options(options: dict[str, object], text: str) -> None:
    with pytest.raises(effc.OptionError) as caught:
        effc.Options(passes={"sparsity": options})
    assert text in str(caught.value)
    assert str(caught.value).startswith("option 'passes': ")


def test_the_share_of_zeros() -> None:
    assert Sparsify("2:4").share == 0.5
    assert Sparsify("1:3", sparsity=2 / 3).share == 2 / 3
    assert Sparsify("16x1", sparsity=0.8).share == 0.8
    assert not Sparsify().prunes
    assert Sparsify("2:4", skip=["*.head.*"]).skips("a.head.weight")
