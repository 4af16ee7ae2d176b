"""Low-rank factors: how good they are, which ranks are chosen, and that a model with them computes what it should."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fixed_times import by_size, fix
from plan_files import kept_in_a_file
from test_compress_smoothing import inputs_of, outliers
from test_quantize import Tied, codes_read, compiled, off, tied, weights_read
from torch import Tensor, nn

import effc
from effc.compiler.capture import record
from effc.compiler.capture.recording import Recording
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.low_rank.ranks import MULTIPLE, Curve, Ranks, allocate
from effc.compiler.compress.low_rank.spectrum import Spectrum


def run(model: nn.Module, x: Tensor, low_rank: dict[str, Any], **passes: Any) -> tuple[Tensor, Recording]:
    options = {"passes": {"low_rank": low_rank, **passes}, "check": True, "fallback": "error"}
    with torch.no_grad(), record() as recording:
        return compiled(model, **options)(x), recording


def ranks(recording: Recording) -> dict[str, int]:
    (compressed,) = recording.compressed
    forms = {name: w.form for name, w in compressed.stages[0].weights.items()}
    return {name: f.rank for name, f in forms.items() if isinstance(f, Factors)}


def product(rank: int) -> Ranks:
    return Ranks("product", (rank,))


def nearly_low_rank(out: int, width: int, rank: int) -> Tensor:
    """A matrix whose singular values fall by a half after ``rank`` and are small then."""
    sizes = torch.ones(min(out, width))
    sizes[rank:] = 1e-3
    u, _ = torch.linalg.qr(torch.randn(out, len(sizes)))
    v, _ = torch.linalg.qr(torch.randn(width, len(sizes)))
    matrix: Tensor = u * sizes @ v.T
    return matrix


# -- factors --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("out", "width"), [(40, 24), (24, 40), (33, 33)])
def test_without_activations_it_is_the_truncated_decomposition(out: int, width: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    spectrum = Spectrum.of([weight], None)
    for rank in (1, 7, 16):
        (found,) = spectrum.factors(product(rank), torch.float64)
        torch.testing.assert_close(found.left @ found.right, u[:, :rank] * s[:rank] @ v[:rank], atol=1e-6, rtol=0)
        assert found.shift is None
        assert float(spectrum.errors()[rank]) == pytest.approx(float((s[rank:] ** 2).sum() / (s**2).sum()), rel=1e-6)


@pytest.mark.parametrize(("out", "width"), [(40, 24), (24, 40)])
def test_with_activations_no_other_product_of_the_rank_is_nearer(out: int, width: int) -> None:
    """Against the decomposition of the weight, by far; against its own perturbations, by a little."""
    torch.manual_seed(0)
    rows = outliers(4000, width) + torch.randn(width)
    weight, inputs = torch.randn(out, width), inputs_of(rows)
    exact = rows.double() @ weight.double().T

    def error(f: Factors, move: float = 0.0) -> float:
        left = f.left + move * torch.randn_like(f.left)
        found = rows.double() @ f.right.T @ left.T
        return float((found + (0 if f.shift is None else f.shift) - exact).norm() / exact.norm())

    spectrum = Spectrum.of([weight], inputs)
    (ours,) = spectrum.factors(product(8), torch.float64)
    (plain,) = Spectrum.of([weight], None).factors(product(8), torch.float64)
    assert error(ours) < 0.7 * error(plain)
    assert all(error(ours) < error(ours, 1e-3) for _ in range(5))
    assert error(ours) ** 2 == pytest.approx(float(spectrum.errors()[8]), rel=0.02, abs=1e-9)


def test_the_mean_is_kept() -> None:
    """What the projection drops of it is in the shift: outputs are right on average."""
    torch.manual_seed(0)
    rows, weight = torch.randn(1000, 24) + 3 * torch.randn(24), torch.randn(40, 24)
    (found,) = Spectrum.of([weight], inputs_of(rows)).factors(product(4), torch.float64)
    assert found.shift is not None
    mean = rows.double().mean(0)
    torch.testing.assert_close(
        found.left @ (found.right @ mean) + found.shift, weight.double() @ mean, rtol=0, atol=1e-4
    )


def test_a_shared_factor_serves_weights_of_unequal_size() -> None:
    """Relative errors count, so the large weight does not take all directions."""
    torch.manual_seed(0)
    rows = torch.randn(2000, 32)
    large, small = 1000 * nearly_low_rank(48, 32, 8), nearly_low_rank(16, 32, 8)
    found = Spectrum.of([large, small], inputs_of(rows)).factors(product(16), torch.float32)
    assert found[0].right is found[1].right
    for factors, weight in zip(found, (large, small), strict=True):
        exact = rows @ weight.T
        assert factors.shift is not None
        assert float((rows @ factors.dense().T + factors.shift - exact).norm() / exact.norm()) < 0.01


def test_channels_that_calibration_saw_at_zero() -> None:
    torch.manual_seed(0)
    rows = torch.randn(100, 24)
    rows[:, :10] = 0
    (found,) = Spectrum.of([torch.randn(40, 24)], inputs_of(rows)).factors(product(16), torch.float32)
    assert bool(found.dense().isfinite().all())


# -- ranks ----------------------------------------------------------------------------------------------------------
def curve(energies: list[float], out: int, width: int) -> Curve:
    errors = torch.tensor([sum(energies[i:]) for i in range(len(energies) + 1)], dtype=torch.float64)
    return Curve.of_products(errors, out + width, out * width)


def test_ranks_are_those_of_least_error() -> None:
    """Against all choices there are."""
    torch.manual_seed(0)
    curves = [curve((torch.rand(64) ** 3).sort(descending=True).values.tolist(), 96, 64) for _ in range(3)]

    def options(c: Curve) -> list[tuple[float, int]]:
        return [(0.0, c.dense), *((point.error, point.size) for point in c.points)]

    total = sum(c.dense for c in curves)
    for kept in (0.45, 0.6, 0.8):
        found = allocate([[[c]] for c in curves], kept)
        taken = [
            (0.0, c.dense) if r is None else next((p.error, p.size) for p in c.points if p.ranks == r)
            for c, (_, [r]) in zip(curves, found, strict=True)
        ]
        size = sum(s for _, s in taken)
        assert size <= kept * total
        every = [(a, b, c) for a in options(curves[0]) for b in options(curves[1]) for c in options(curves[2])]
        as_large = [sum(e for e, _ in choice) for choice in every if sum(s for _, s in choice) <= size]
        assert sum(e for e, _ in taken) <= min(as_large) + 1e-9


def test_what_falls_fast_gets_the_smaller_rank() -> None:
    fast, slow = [2.0**-i for i in range(64)], [1 / 64] * 64
    (_, [first]), (_, [second]) = allocate([[[curve(fast, 64, 64)]], [[curve(slow, 64, 64)]]], 0.8)
    assert first == product(MULTIPLE)
    assert second is None or second.sizes > (MULTIPLE,)


def test_sharing_is_chosen_where_it_pays() -> None:
    torch.manual_seed(0)
    common = torch.randn(16, 96)
    alike = [torch.randn(96, 16) @ common for _ in range(3)]
    other = [nearly_low_rank(96, 96, 16) for _ in range(3)]
    for weights, shared in ((alike, True), (other, False)):
        apart = [Spectrum.of([w], None).curve() for w in weights]
        together = [Spectrum.of(weights, None).curve()]
        ((way, _),) = allocate([[apart, together]], 0.5)
        assert (way == 1) == shared


# -- in a model -----------------------------------------------------------------------------------------------------
def test_a_model_with_factors_computes_what_eager_makes_of_them() -> None:
    model, tokens = tied()
    with torch.no_grad():
        for name in ("embedding.weight", "query.weight", "value.weight", "out.weight"):
            weight = model.get_parameter(name)
            weight.copy_(nearly_low_rank(weight.shape[0], weight.shape[1], 16))
    found, recording = run(model, tokens, {"rank": 16})
    assert 0 < off(found, model, tokens) < 0.02
    assert ranks(recording) == dict.fromkeys(["embedding.weight", "query.weight", "value.weight", "out.weight"], 16)
    assert weights_read(recording) == {"query.bias", "out.bias"}


def test_ranks_by_activations_are_the_better() -> None:
    model, _ = tied()
    torch.manual_seed(1)
    with torch.no_grad():
        table = model.get_parameter("embedding.weight")
        table.copy_(outliers(*table.shape) / 10 + 0.3)
    batches = [torch.randint(0, 100, (4, 7)) for _ in range(4)]
    calibration = effc.calibrate(model, batches, held_out=0)
    errors = []
    for method in ({"method": "svd"}, {"method": "output", "calibration": calibration}):
        torch._dynamo.reset()
        found, recording = run(model, batches[0], {"parameters": 0.6, "skip": ["embed*"], **method})
        assert set(ranks(recording)) <= {"query.weight", "value.weight", "out.weight"}
        errors.append(off(found, model, batches[0]))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("quantize", [{}, {"activations": "token"}, {"weights": "int4", "group": 16}])
def test_factors_are_quantized(quantize: dict[str, Any]) -> None:
    model, tokens = tied()
    whole, _ = run(model, tokens, {"rank": 32, "skip": ["embed*"]})
    torch._dynamo.reset()
    found, recording = run(model, tokens, {"rank": 32, "skip": ["embed*"]}, quantize={**quantize, "skip": ["embed*"]})
    layers = ("query.weight", "value.weight", "out.weight")
    assert codes_read(recording) == {f"{name}:{side}" for name in layers for side in ("left", "right")}
    assert 0 < float((found - whole).norm() / whole.norm()) < 0.3


def test_gptq_of_what_has_factors_rounds_them_to_the_nearest() -> None:
    model, tokens = tied()
    calibration = effc.calibrate(model, [tokens])
    quantize = {"rounding": "gptq", "calibration": calibration}
    found, recording = run(model, tokens, {"rank": 32, "skip": ["embed*", "out*"]}, quantize=quantize)
    assert {"out.weight", "query.weight:left"} <= codes_read(recording)
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    model, tokens = tied()
    with torch.no_grad():
        for name in ("query.weight", "out.weight"):
            model.get_parameter(name).copy_(nearly_low_rank(128, 128, 16))
    model = model.to(dtype)
    calibration = effc.calibrate(model, [tokens, torch.randint(0, 100, (16, 7))], held_out=0)
    options = {"rank": 16, "method": "output", "calibration": calibration, "skip": ["embed*", "value*"]}
    found, recording = run(model, tokens, options)
    assert found.dtype == dtype
    assert ranks(recording) == {"query.weight": 16, "out.weight": 16}
    assert off(found, model, tokens) < 0.05


class Flat(nn.Module):
    """Tokens of one dimension, so that products read the looked-up rows themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first, self.second = nn.Embedding(50, 48), nn.Linear(48, 64), nn.Linear(64, 40, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.gelu(self.second(F.gelu(self.first(self.embedding(tokens)))))


@pytest.mark.parametrize(
    "passes",
    [
        {"quantize": {"activations": "token"}},
        {"low_rank": {"rank": 8}},
        {"low_rank": {"rank": 8}, "quantize": {"activations": "token"}},
    ],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_layers_behind_one_another(passes: dict[str, Any], dynamic: bool) -> None:
    torch.manual_seed(0)
    model = Flat().eval()
    options: dict[str, Any] = {"passes": passes, "check": True}
    fast = torch.compile(model, backend="effc", dynamic=dynamic, options=options)
    with torch.no_grad():
        for length in (5, 9, 1):
            tokens = torch.randint(0, 50, (length,))
            assert off(fast(tokens), model, tokens) < (1.2 if "low_rank" in passes else 0.05)


def test_autocast() -> None:
    """Factors are of the parameter's dtype, and meet activations of another."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)).eval(), torch.randn(7, 64)
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(nearly_low_rank(96, 64, 16))
    calibration = effc.calibrate(model, [x])
    fast = compiled(
        model, passes={"low_rank": {"rank": 16, "method": "output", "calibration": calibration, "skip": ["2*"]}}
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = fast(x), model(x)
    assert found.dtype == expected.dtype
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_products_times_a_number_stay() -> None:
    """What a factorization adds to the output would not be multiplied with it."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(64, 48)), nn.Parameter(torch.randn(48))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight, beta=0.5, alpha=3)

    torch.manual_seed(0)
    model, x = Scaled().eval(), torch.randn(7, 64)
    found, recording = run(model, x, {"rank": 16})
    assert ranks(recording) == {}
    with torch.no_grad():
        torch.testing.assert_close(found, model(x))


def test_new_values_have_the_ranks_of_the_old() -> None:
    model, tokens = tied()
    fast = compiled(model, passes={"low_rank": {"parameters": 0.7}})
    with torch.no_grad():
        before = off(fast(tokens), model, tokens)
        model.get_parameter("query.weight").copy_(nearly_low_rank(128, 128, 8))
        with pytest.warns(UserWarning, match="not the weights that effc compressed"):
            assert off(fast(tokens), model, tokens) < 1e-5
        effc.refresh(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert 1e-4 < off(fast(tokens), model, tokens) < 1.5 * before


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, tokens = tied()
    options = {"passes": {"low_rank": {"parameters": 0.7}, "quantize": {}}}
    effc.save(model, tokens, tmp_path / "small", options=options)
    with torch.no_grad():
        assert torch.equal(effc.load(tmp_path / "small")(tokens), compiled(model, **options)(tokens))


# -- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("low_rank", "text"),
    [
        ({"rank": 0}, "low_rank: 'rank' is 0: expected a whole number of at least 1"),
        ({"rank": 2.5}, "'rank' is 2.5"),
        ({"rank_ratio": 1.0}, "'rank_ratio' is 1.0: expected a number between 0 and 1"),
        ({"parameters": 0}, "'parameters' is 0: expected a number between 0 and 1"),
        ({"rank": 8, "parameters": 0.5}, "'rank' and 'parameters' exclude each other"),
        ({"method": "qr"}, "'method' is 'qr': expected one of svd, output"),
        ({"method": "output"}, "method='output' needs the activations: give 'calibration'"),
        ({"skip": "head"}, "'skip' is 'head': expected a list of names"),
    ],
)  # fmt: skip
def test_wrong_options(low_rank: dict[str, Any], text: str) -> None:
    with pytest.raises(effc.OptionError, match=text):
        effc.Options(passes={"low_rank": low_rank})


def broken(model: Tied, kind: str) -> None:
    with torch.no_grad():
        if kind == "zeros":
            model.query.weight.zero_()
        elif kind == "nan":
            model.query.weight[3, 4] = float("nan")


@pytest.mark.parametrize(
    ("kind", "low_rank", "text"),
    [
        ("", {"rank": 65}, r"rank=65 is above the full rank of value.weight, \[64, 128\]: ask for at most 64, or name it in 'skip'"),
        ("", {"parameters": 0.01}, "ranks of 16 keep 0.2.. of the parameters, more than parameters=0.01"),
        ("zeros", {"rank": 8}, r"query\.weight: the weight holds zeros only"),
        ("nan", {"rank": 8}, r"query\.weight: the weight holds NaN or infinity"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_factorized(kind: str, low_rank: dict[str, Any], text: str) -> None:
    model, tokens = tied()
    assert isinstance(model, Tied)
    broken(model, kind)
    with torch.no_grad(), pytest.raises(Exception, match=text):
        compiled(model, passes={"low_rank": low_rank})(tokens)


def test_what_has_nothing_to_gain_stays() -> None:
    model, tokens = tied()
    found, recording = run(model, tokens, {"rank": 64, "skip": ["embed*"]})
    assert ranks(recording) == {}
    assert off(found, model, tokens) < 1e-5
    assert "value.weight stays as it is: no form of it gains anything" in recording.notes


# -- plans ----------------------------------------------------------------------------------------------------------
def test_a_plan_with_factors_is_kept_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fix(monkeypatch, by_size)
    model, tokens = tied()
    with torch.no_grad():
        for name in ("query.weight", "out.weight"):
            model.get_parameter(name).copy_(nearly_low_rank(128, 128, 16))
    calibration = effc.calibrate(model, [tokens, *(torch.randint(0, 100, (16, 7)) for _ in range(2))])
    options = {
        "passes": {"quantize": False, "low_rank": {"parameters": 0.5, "method": "output", "calibration": calibration}}
    }
    plan = effc.plan(model, calibration, accuracy_budget=0.1, options=options)
    assert "out.weight" in plan.weights
    assert plan.measured is not None
    assert 1e-5 < plan.measured <= 0.1
    found = kept_in_a_file(plan, model, tokens, tmp_path / "plan")
    assert 1e-5 < off(found, model, tokens) <= 0.1
