"""Random graphs with fixed seeds as programs for a GPU, in the interpreter; what there is no kernel for runs in ATen."""

from __future__ import annotations

import pytest
from fuzz.check import check
from fuzz.generate import generate
from gpu_programs import InterpretingGpu, gpu_backend, watched


@pytest.mark.parametrize(("seed", "dynamic"), [*((seed, False) for seed in range(5)), (0, True)])
def test_random_graphs(seed: int, dynamic: bool) -> None:
    source = generate(seed, dynamic=dynamic).source()
    gpu = InterpretingGpu()
    with watched(gpu):
        outcome = check(source, seed, gpu_backend(gpu, "eager"), dynamic=dynamic)  # type: ignore[arg-type]
    assert not outcome.failed, f"{outcome.detail}\n{source}"
