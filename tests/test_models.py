"""Whole models, small, through ``backend="effc"``: exact, in effc's kernels, and one compilation for many sizes."""

from __future__ import annotations

import pytest
import torch
import zoo
from exactness import assert_exact

from effc.compiler.capture.recording import Recording, record

NAMES = list(zoo.ENTRIES)
#: Without those that are, small, another model but for a part (pooling by a mean; no squeeze and excitation; two convolutions a block).
DYNAMIC = [
    name for name in NAMES if not zoo.ENTRIES[name].recurrent and name not in ("minilm_l6", "mobilenet_v2", "resnet18")
]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def coverage(recording: Recording) -> float:
    """Share of FLOPs, by torch's own counter, in effc's kernels."""
    ours = sum(g.flops_compiled for g in recording.graphs)
    return ours / (ours + sum(g.flops_aten for g in recording.graphs))


@pytest.mark.parametrize("name", NAMES)
def test_exact_on_fresh_inputs(name: str) -> None:
    """Two seeds of inputs, one compilation; caches that the model writes are compared too."""
    case = zoo.build(name, small=True)
    with torch.no_grad(), record() as recording:
        compiled = torch.compile(case.module, backend="effc")
        for seed in (11, 12):
            assert_exact(case.module, case.inputs(seed, 0), compiled, strides=True, context=f"{name}, seed {seed}:")
    if not zoo.ENTRIES[name].recurrent:
        assert coverage(recording) >= 0.95, [f for g in recording.graphs for f in g.fallbacks]


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_sizes_share_one_compilation(name: str) -> None:
    case = zoo.build(name, small=True)
    torch._dynamo.utils.counters.clear()
    with torch.no_grad(), record() as recording:
        compiled = torch.compile(case.module, backend="effc", dynamic=True)
        for step in (4, 6, 9):
            assert_exact(case.module, case.inputs(step, step), compiled, context=f"{name}, step {step}:")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert coverage(recording) >= 0.95, [f for g in recording.graphs for f in g.fallbacks]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mlp", "resnet18", "vit_base", "llama_prefill"])
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    case = zoo.build(name, small=True)
    module = case.module.to(dtype)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in case.inputs(5, 0))
    with torch.no_grad():
        assert_exact(module, inputs, torch.compile(module, backend="effc"))


def test_names_of_unknown_models_are_refused() -> None:
    with pytest.raises(KeyError, match="there are: mlp"):
        zoo.build("resnet19", small=True)
