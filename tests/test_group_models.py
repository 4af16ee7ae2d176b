"""Models with N:M weights and few rows, from options to results: pruned, found so, changed, saved."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned_models import LAYERS, Net, Transposed, compiled, forms, packed, pruned, put, run, same
from torch import Tensor

import effc
from effc.compiler.capture import record
from effc.compiler.compress.pruning.prune import prune
from effc.compiler.ir.pattern import Pattern

TWO_OF_FOUR = {"pattern": "2:4"}


def decoding(rows: int = 1) -> tuple[Net, Tensor]:
    """One token of each of ``rows`` texts."""
    torch.manual_seed(0)
    return Net().eval(), torch.randint(0, 100, (rows, 1))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_pruned_weights(pattern: str, rows: int) -> None:
    model, tokens = decoding(rows)
    found, recording = run(model, tokens, {"pattern": pattern}, check=True, fallback="error")
    pruned(model, pattern, Pattern.parse(pattern).sparsity or 0)
    assert same(found, model, tokens)
    assert packed(recording).count("group_panels") == len(LAYERS)


def test_bfloat16() -> None:
    model, tokens = decoding()
    found, recording = run(model.bfloat16(), tokens, TWO_OF_FOUR, check=True)
    pruned(model, "2:4", 0.5)
    with torch.no_grad():
        expected = model.float()(tokens)
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).norm() / expected.norm()) < 2.0**-7
    assert packed(recording).count("group_panels") == len(LAYERS)


def test_zeros_that_are_there() -> None:
    model, tokens = decoding()
    pruned(model, "2:4", 0.5, ("query.weight", "out.weight"))
    found, recording = run(model, tokens, {}, check=True)
    assert same(found, model, tokens)
    assert {name: str(form.pattern) for name, form in forms(recording).items()} == {
        "query.weight": "2:4",
        "out.weight": "2:4",
    }
    assert packed(recording).count("group_panels") == 2


def test_a_weight_with_the_sum_first() -> None:
    torch.manual_seed(0)
    model, x = Transposed().eval(), torch.randn(1, 128)
    found, recording = run(model, x, TWO_OF_FOUR, check=True)
    put(model, {"weight": prune({"w": model.weight.detach().T}, Pattern.parse("2:4"), 0.5)["w"].T})
    assert same(found, model, x)
    assert "group_panels" in packed(recording)


def test_many_rows_have_kernels_of_their_own() -> None:
    """A product that multiply-adds bound gains nothing from groups."""
    model, _ = decoding()
    tokens = torch.randint(0, 100, (4, 100))
    found, recording = run(model, tokens, TWO_OF_FOUR, check=True)
    pruned(model, "2:4", 0.5)
    assert same(found, model, tokens)
    assert "group_panels" not in packed(recording)


# -- weights that change --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sparsity", [TWO_OF_FOUR, {}], ids=["pruned", "found"])
def test_new_weights_are_taken_wherever_their_zeros_are(sparsity: dict[str, Any]) -> None:
    model, tokens = decoding()
    if not sparsity:
        pruned(model, "2:4", 0.5)
    fast = compiled(model, passes={"sparsity": sparsity})
    with torch.no_grad():
        fast(tokens)
        put(model, {"query.weight": torch.randn(256, 128)})
        pruned(model, "2:4", 0.5, ("query.weight",))
        with pytest.warns(UserWarning, match="not the weights that effc compressed"):
            assert same(fast(tokens), model, tokens)
        effc.refresh(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = fast(tokens)
        pruned(model, "2:4", 0.5)
        assert same(found, model, tokens)


def test_a_group_with_one_more_is_not_taken() -> None:
    model, tokens = decoding()
    pruned(model, "2:4", 0.5)
    fast = compiled(model, passes={"sparsity": {}})
    with torch.no_grad():
        fast(tokens)
        weight = model.get_parameter("query.weight")
        weight[8, 4:8] = torch.tensor([0.5, 0.0, 0.5, 0.5])
        weight[9] = 0  # so there are more zeros than before
        effc.refresh(model)
        with pytest.warns(
            UserWarning, match=r"query\.weight has lost the zeros of 2:4 that it had when it was compiled"
        ):
            assert same(fast(tokens), model, tokens)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, tokens = decoding()
    options = {"passes": {"sparsity": TWO_OF_FOUR}}
    effc.save(model, tokens, tmp_path / "small", options=options)
    with torch.no_grad(), record() as recording:
        assert torch.equal(effc.load(tmp_path / "small")(tokens), compiled(model, **options)(tokens))
    assert "group_panels" in packed(recording)
