"""Trees read from LightGBM's text: they predict what LightGBM does, to the bit, and what is no such text is refused."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from effc.costmodel.model.trees import Forest

lightgbm = pytest.importorskip("lightgbm", reason="needs the extra 'costmodel'")

FEATURES = 9


def table(rows: int, seed: int) -> NDArray[np.float32]:
    """Numbers of many sizes, some missing; the last columns: missing nowhere, equal everywhere, missing everywhere but in few."""
    draw = np.random.default_rng(seed)
    found = (draw.normal(size=(rows, FEATURES)) * 10.0 ** draw.integers(-3, 4, FEATURES)).astype(np.float32)
    found[draw.random(found.shape) < 0.2] = np.nan
    found[:, -3] = np.round(np.nan_to_num(found[:, -3]))
    found[:, -2] = 7
    found[draw.random(rows) < 0.9, -1] = np.nan
    return found


@lru_cache(maxsize=4)
def text(objective: str) -> str:
    rows = table(700, 1)
    target = np.nan_to_num(rows[:, 0]) * np.nan_to_num(rows[:, 1]) + 3 * np.isnan(rows[:, 2]) + np.isnan(rows[:, -1])
    target = target > np.median(target) if objective == "binary" else target
    names = [f"f{i}" for i in range(FEATURES)]
    made = lightgbm.train(
        {"objective": objective, "alpha": 0.3, "max_depth": 8, "verbosity": -1, "num_threads": 1},
        lightgbm.Dataset(rows, target, feature_name=names),
        60,
    )
    found: str = made.model_to_string()
    return found


@pytest.mark.parametrize("objective", ["quantile", "regression", "binary", "l1"])
@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 1000])
def test_predictions_are_those_of_lightgbm(objective: str, rows: int) -> None:
    made = text(objective)
    given = table(rows, rows)
    expected = lightgbm.Booster(model_str=made).predict(given, raw_score=True, num_threads=1)
    np.testing.assert_array_equal(Forest.parse(made).predict(given), expected)


def test_values_at_a_limit_go_left() -> None:
    made = Forest.parse(text("quantile"))
    booster = lightgbm.Booster(model_str=text("quantile"))
    limits = made.limits[made.children[::2] != np.arange(len(made.limits))]
    given = np.resize(limits[np.isfinite(limits)], (400, FEATURES)).astype(np.float32)
    for rows in (given, np.nextafter(given, np.float32(np.inf)), np.nextafter(given, np.float32(-np.inf))):
        np.testing.assert_array_equal(made.predict(rows), booster.predict(rows, raw_score=True, num_threads=1))


def test_gains_are_those_of_lightgbm() -> None:
    gains = lightgbm.Booster(model_str=text("quantile")).feature_importance("gain")
    np.testing.assert_allclose(Forest.parse(text("quantile")).gains, gains, rtol=1e-3)


def test_trees_of_one_leaf_predict_it() -> None:
    names = [f"f{i}" for i in range(FEATURES)]
    rows = table(100, 2)
    made = lightgbm.train({"verbosity": -1}, lightgbm.Dataset(rows, np.full(100, 2.5), feature_name=names), 3)
    np.testing.assert_array_equal(Forest.parse(made.model_to_string()).predict(rows), made.predict(rows))


def test_nothing_is_predicted_of_no_rows() -> None:
    assert Forest.parse(text("quantile")).predict(np.zeros((0, FEATURES), np.float32)).shape == (0,)


def test_rows_of_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match="9 features"):
        Forest.parse(text("quantile")).predict(np.zeros((3, 4), np.float32))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tree\n", "wood\n", "no text of LightGBM's trees"),
        ("version=v4", "version=v9", "no text of LightGBM's trees"),
        ("num_class=1", "num_class=3", "not one sum"),
        ("tree_sizes=", "tree_sizes=1 ", "not as many sizes"),
        ("num_cat=0", "num_cat=1", "tree 0: categories"),
        ("is_linear=0", "is_linear=1", "tree 0: categories, or linear leaves"),
        ("split_feature=", "split_feature=1 ", "tree 0: split_feature has"),
        ("split_feature=", "split_feature=9", "a feature that is not there"),
        ("leaf_value=", "leaf_value=nan ", "tree 0: leaf_value has"),
        ("left_child=1", "left_child=0", "tree 0: its nodes are no tree"),
        ("left_child=1", "left_child=99", "tree 0: its nodes are no tree"),
        ("decision_type=", "decision_type=4", "a split that is not numerical"),
        ("num_leaves=", "num_leaves=x", "tree 0"),
    ],
)
def test_an_edited_text_is_refused(old: str, new: str, message: str) -> None:
    assert old in text("quantile")
    with pytest.raises(ValueError, match=message):
        Forest.parse(text("quantile").replace(old, new, 1))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
def test_a_text_cut_short_is_refused(share: float) -> None:
    whole = text("quantile")
    end = int(share * whole.index("end of trees"))
    with pytest.raises(ValueError, match=r"no text of|not one sum|not as many|tree \d+: "):
        Forest.parse(whole[:end])
