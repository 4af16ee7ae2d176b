"""Options: what is taken, and the text of every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import UNAVAILABLE, Options


def test_defaults_leave_the_rest_to_aten() -> None:
    options = Options()
    assert (options.fallback, options.check, options.target, options.passes) == ("eager", False, None, ())


def test_equal_options_compare_and_hash_equal(tmp_path: Path) -> None:
    a = Options(fallback="error", cache_dir=tmp_path)
    b = Options(cache_dir=str(tmp_path), fallback="error")
    assert a == b
    assert hash(a) == hash(b)
    assert a.arguments() == b.arguments()
    assert a != Options()


def test_options_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Options().check = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"fallbck": "eager"}, "unknown option 'fallbck': did you mean 'fallback'? (known: accuracy_budget, cache_dir, check, "),
        ({"fallback": "eagr"}, "option 'fallback' is 'eagr': allowed are 'eager', 'error'; did you mean 'eager'?"),
        ({"fallback": []}, "option 'fallback' is []: allowed are 'eager', 'error'"),
        ({"check": 1}, "option 'check' is 1: allowed are True, False"),
        ({"target": "gpu"}, "option 'target' is 'gpu': allowed are 'cpu', 'cuda', None"),
        ({"cache_dir": 3}, "option 'cache_dir' is 3: expected the path of a directory"),
        ({"passes": ["x"]}, "option 'passes' is ['x']: expected a dict from pass names to False or a dict of options"),
        ({"passes": {"no-such-pass": False}}, "option 'passes': no pass is named 'no-such-pass'; "),
    ],
)  # fmt: skip
def test_refusals_say_name_value_and_what_is_allowed(values: dict[str, object], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Options(**values)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("name", sorted(UNAVAILABLE))
def test_a_known_option_without_its_feature_is_refused(name: str) -> None:
    with pytest.raises(
        OptionError, match=f"option '{name}': .* is not part of this version of effc; leave the option out"
    ):
        Options(**{name: 0.01})


def test_a_file_is_no_cache_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OptionError, match="that is a file; expected a directory, which is made if absent"):
        Options(cache_dir=file)


@pytest.mark.parametrize("mode", [None, "default", "reduce-overhead"])
def test_modes_that_ask_for_nothing_more(mode: str | None) -> None:
    assert Options.of({"check": True}, mode) == Options(check=True)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (
            "max-autotune",
            "mode='max-autotune': torch.compile alone searches no schedules; leave mode out, "
            "or give a plan made with effc.plan(..., autotune=8)",
        ),
        ("fast", "unknown mode 'fast': effc takes 'default' and 'reduce-overhead'"),
    ],
)
def test_modes_refused_by_name(mode: str, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Options.of(None, mode)
    assert str(caught.value) == text


def test_what_is_no_mapping_is_refused() -> None:
    with pytest.raises(OptionError, match=r"expected a dict from option names to values, or effc\.Options"):
        Options.of(["check"])  # type: ignore[arg-type]


def test_the_first_call_shows_the_whole_text() -> None:
    compiled = torch.compile(lambda x: x + 1, backend="effc", options={"fallbak": "error"})
    with pytest.raises(
        torch._dynamo.exc.BackendCompilerFailed, match="OptionError: unknown option 'fallbak': did you mean"
    ):
        compiled(torch.ones(2))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"plan": 3}, "option 'plan' is 3: expected what effc.plan returns, or the path of a saved plan"),
        ({"accuracy_budget": -0.1}, "option 'accuracy_budget' is -0.1: expected a number of at least 0"),
        ({"accuracy_budget": float("nan")}, "option 'accuracy_budget' is nan: expected a number of at least 0"),
        ({"accuracy_budget": "1 %"}, "option 'accuracy_budget' is '1 %': expected a number of at least 0"),
        ({"metric": "perplexty"}, "option 'metric' is 'perplexty': expected a callable (reference_outputs, outputs, batch) -> "
                                  "float, or a name; did you mean 'perplexity'?"),
    ],
)  # fmt: skip
def test_refusals_of_planning(values: dict[str, object], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Options(**values)
    assert str(caught.value).startswith(text)


def test_options_of_their_own_json_are_equal() -> None:
    options = Options(accuracy_budget=0.01, metric="kl", check=True)
    assert Options.of(options.arguments()) == options
