"""A quick slice of the OpInfo sweep (``tools/opinfo_sweep.py`` runs all of it)."""

from __future__ import annotations

import pytest
from sweep import check, table

#: One or two of each kind of lowering.
OPS = [
    "add",
    "mul",
    "div.no_rounding_mode",
    "pow",
    "clamp",
    "where",
    "maximum",
    "lerp",
    "exp",
    "erf",
    "tanh",
    "rsqrt",
    "sigmoid",
    "nn.functional.gelu",
    "nn.functional.silu",
    "nn.functional.softplus",
    "sum",
    "mean",
    "amax",
    "argmax",
    "var",
    "norm",
    "prod",
    "logsumexp",
    "softmax",
    "log_softmax",
    "cumsum",
    "nn.functional.layer_norm",
    "nn.functional.batch_norm",
    "matmul",
    "addmm",
    "bmm",
    "nn.functional.linear",
    "nn.functional.conv2d",
    "nn.functional.conv_transpose2d",
    "nn.functional.max_pool2d",
    "nn.functional.avg_pool2d",
    "nn.functional.embedding",
    "gather",
    "index_select",
    "scatter_add",
    "index_put",
    "transpose",
    "cat",
    "nn.functional.pad.constant",
    "flip",
    "tril",
    "nn.functional.scaled_dot_product_attention",
    "sort",
]


@pytest.mark.parametrize("name", OPS)
def test_matches_eager(name: str) -> None:
    (op,) = check.ops([name])
    for index, sample in enumerate(check.samples(op, 2)):
        verdict = check.check(op, sample, "effc")
        assert verdict.status not in ("mismatch", "inexact", "error"), (index, verdict.detail)


def test_classes_and_ranking() -> None:
    def one(status: str, *reasons: tuple[str, str]) -> dict[str, object]:
        return {"status": status, "detail": "", "reasons": list(reasons)}

    data = table.summary(
        {
            "add": [one("compiled"), one("copies")],
            "sort": [one("fallback", ("aten.sort", "no lowering"))] * 2,
            "mode": [one("fallback", ("aten.sort", "no lowering")), one("compiled")],
            "t": [one("copies"), one("skipped")],
            "bad": [one("compiled"), one("crash")],
        }
    )
    assert data["ops"]["compiled"] == ["add"]
    assert data["ops"]["fallback"] == ["sort"]
    assert data["ops"]["partly"] == ["mode"]
    assert data["ops"]["copies"] == ["t"]
    assert data["failures"] == [{"op": "bad", "sample": 1, "status": "crash", "detail": ""}]
    assert data["reasons"] == [{"op": "aten.sort", "reason": "no lowering", "ops": 2}]
    assert "2  aten.sort: no lowering" in table.text(data)
