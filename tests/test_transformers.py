"""Models of ``transformers`` as their authors wrote them, compiled: exact, and what ATen runs is known."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

if find_spec("transformers") is None:
    pytest.skip("needs transformers", allow_module_level=True)

import torch
import transformers_models
from exactness import assert_exact

from effc.compiler.capture.recording import Recording, record

pytestmark = pytest.mark.slow

#: Breaks graphs by itself: ``transformers`` takes a lock on the way to its hidden states.
_BREAKING = {"segformer"}
#: Ops that effc leaves to ATen, by model; the others have none.
_LEFT = {"mixtral": {"aten.topk.default"}}


def left_to_aten(recording: Recording) -> set[str]:
    return {f.op for g in recording.graphs for f in g.fallbacks}


@pytest.mark.parametrize("name", transformers_models.BUILDERS)
def test_exact_and_whole(name: str) -> None:
    case = transformers_models.build(name)
    with torch.no_grad(), record() as recording:
        compiled = torch.compile(case.module, backend="effc", fullgraph=name not in _BREAKING)
        for seed in (1, 2):
            assert_exact(case.module, case.inputs(seed), compiled, context=f"{name}, seed {seed}:")
    assert sum(len(g.regions) for g in recording.graphs) >= 1
    assert left_to_aten(recording) == _LEFT.get(name, set())


def test_grouped_experts_run() -> None:
    """Mixtral's default form: ATen orders the tokens by expert and runs the grouped products, effc the rest."""
    case = transformers_models.build("mixtral")
    case.module.model.set_experts_implementation("grouped_mm")  # type: ignore[union-attr, operator]
    with torch.no_grad(), record() as recording:
        ours = torch.compile(case.module, backend="effc")(*case.inputs(1))
        eager = case.module(*case.inputs(1))
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    assert left_to_aten(recording) == {
        "aten.topk.default", "aten.sort.default", "aten.histc.default", "transformers.grouped_mm_fallback.default",
    }  # fmt: skip
