"""Small ``transformers`` models from their configs, random weights: what users compile, as their authors wrote it.

>>> model, inputs = build("bert")
>>> model(*inputs(seed=0))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

#: Tokens of each vocabulary, hidden channels, heads and channels of the MLP of the language models.
VOCABULARY, HIDDEN, HEADS, WIDE = 97, 48, 4, 80

_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": WIDE,
    "max_position_embeddings": 64,
}
_CAUSAL: dict[str, Any] = _TEXT | {"num_key_value_heads": 2, "use_cache": False}


class Keyword(nn.Module):
    """A model of ``transformers`` called by position: ``names`` are its keywords, ``fixed`` is passed always."""

    def __init__(self, model: nn.Module, *names: str, **fixed: Any) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.fixed = fixed

    def forward(self, *values: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self.model(**dict(zip(self.names, values, strict=True)), **self.fixed).to_tuple()
        return found


Inputs = Callable[[int], tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    """A module in eval mode, and ``inputs(seed)``, its positional arguments, of one shape for every seed."""

    module: nn.Module
    inputs: Inputs


def _tokens(batch: int, length: int, g: torch.Generator) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=g)


def _mask(batch: int, length: int) -> Tensor:
    """The second half of the rows is padded by three tokens at the end."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[batch // 2 :, -3:] = 0
    return mask


def _seeded(make: Callable[[torch.Generator], tuple[Any, ...]]) -> Inputs:
    return lambda seed: make(torch.Generator().manual_seed(seed))


def _text(model: nn.Module, **fixed: Any) -> Case:
    return Case(
        Keyword(model, "input_ids", "attention_mask", **fixed), _seeded(lambda g: (_tokens(2, 13, g), _mask(2, 13)))
    )


def _image(model: nn.Module, size: int, channels: int = 3) -> Case:
    return Case(Keyword(model, "pixel_values"), _seeded(lambda g: (torch.randn(2, channels, size, size, generator=g),)))


def bert() -> Case:
    return _text(hf.BertForSequenceClassification(hf.BertConfig(**_TEXT)))


def distilbert() -> Case:
    config = hf.DistilBertConfig(vocab_size=VOCABULARY, dim=HIDDEN, n_layers=2, n_heads=HEADS, hidden_dim=WIDE)
    return _text(hf.DistilBertModel(config))


def gpt2() -> Case:
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=2, n_head=HEADS, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return _text(hf.GPT2LMHeadModel(config), use_cache=False)


def llama() -> Case:
    return _text(hf.LlamaForCausalLM(hf.LlamaConfig(**_CAUSAL)))


def qwen2() -> Case:
    return _text(hf.Qwen2ForCausalLM(hf.Qwen2Config(**_CAUSAL)))


def mixtral() -> Case:
    """Experts by batched products: the grouped product, which is the default, has no float64 to compare against."""
    options: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "batched_mm"}
    config = hf.MixtralConfig(**_CAUSAL, **options)
    return _text(hf.MixtralForCausalLM(config))


def mamba() -> Case:
    config = hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, state_size=8)
    return _text(hf.MambaForCausalLM(config), use_cache=False)


def t5() -> Case:
    config = hf.T5Config(
        vocab_size=VOCABULARY, d_model=HIDDEN, d_kv=12, d_ff=WIDE, num_layers=2, num_heads=HEADS,
    )  # fmt: skip
    model = Keyword(hf.T5ForConditionalGeneration(config), "input_ids", "decoder_input_ids", use_cache=False)
    return Case(model, _seeded(lambda g: (_tokens(2, 11, g), _tokens(2, 7, g))))


def whisper() -> Case:
    config = hf.WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=20, d_model=HIDDEN, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=WIDE, decoder_ffn_dim=WIDE,
        max_source_positions=25, max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    model = hf.WhisperForConditionalGeneration(config)
    return Case(
        Keyword(model, "input_features", "decoder_input_ids", use_cache=False),
        _seeded(lambda g: (torch.randn(2, 20, 50, generator=g), _tokens(2, 5, g))),
    )


def wav2vec2() -> Case:
    config = hf.Wav2Vec2Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=WIDE, conv_dim=(32, 32, 32), conv_kernel=(10, 3, 3), conv_stride=(5, 2, 2),
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    return Case(
        Keyword(hf.Wav2Vec2Model(config), "input_values"), _seeded(lambda g: (torch.randn(2, 1000, generator=g),))
    )


def clip() -> Case:
    text = {k: v for k, v in _TEXT.items() if k != "max_position_embeddings"}
    config = hf.CLIPConfig(
        text_config=text | {"max_position_embeddings": 20, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
        vision_config={
            "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": WIDE,
            "image_size": 32, "patch_size": 8,
        },
        projection_dim=24,
    )  # fmt: skip
    return Case(
        Keyword(hf.CLIPModel(config), "input_ids", "pixel_values", return_dict=True),
        _seeded(lambda g: (_tokens(2, 9, g), torch.randn(3, 3, 32, 32, generator=g))),
    )


def vit() -> Case:
    config = hf.ViTConfig(
        hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=WIDE, image_size=32,
        patch_size=8,
    )  # fmt: skip
    return _image(hf.ViTForImageClassification(config), 32)


def swin() -> Case:
    config = hf.SwinConfig(image_size=32, patch_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4)
    return _image(hf.SwinForImageClassification(config), 32)


def convnext() -> Case:
    config = hf.ConvNextConfig(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1])
    return _image(hf.ConvNextForImageClassification(config), 64)


def resnet() -> Case:
    config = hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1])
    return _image(hf.ResNetForImageClassification(config), 64)


def mobilenet_v2() -> Case:
    return _image(hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(depth_multiplier=0.35)), 64)


def segformer() -> Case:
    config = hf.SegformerConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 24, 32, 48], decoder_hidden_size=32)
    return _image(hf.SegformerForSemanticSegmentation(config), 64)


BUILDERS: dict[str, Callable[[], Case]] = {
    make.__name__: make
    for make in (
        bert, distilbert, gpt2, llama, qwen2, mixtral, mamba, t5, whisper, wav2vec2, clip, vit, swin, convnext, resnet,
        mobilenet_v2, segformer,
    )
}  # fmt: skip


def build(name: str) -> Case:
    """The model in eval mode, the same weights in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(20)
        case = BUILDERS[name]()
    case.module.eval()
    return case
