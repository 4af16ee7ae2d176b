"""What low-rank factors gain a language model at a share of its parameters: SmolLM2-135M, ranks by sensitivity, against effc's exact model.

    make models     # once
    python tools/low_rank_speed.py --kept 0.98 0.95 0.9 --threads 2

The pretrained weights in the Llama of ``effc bench``, whose decoder writes a static cache: a prompt of 256 tokens, and one token after 128
of 256. Each round calls all in turn; medians, and how many times faster than the exact model (20th to 80th percentile over the rounds).
`low_rank_accuracy.py` says what the same ranks cost.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from accuracy_tasks import Language
from torch import Tensor, nn

import effc
from effc.apart import compiled_apart
from effc.bench.models import build
from effc.bench.models.language import Llama
from effc.bench.spread import Spread
from effc.cli.timing import race

#: Rounds that are not counted.
_WARM = 2
_PROMPT = 256
#: Names of weights in ``transformers`` and here.
_NAMES = {
    "model.embed_tokens": "words",
    "model.norm": "norm",
    "model.layers": "layers",
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.o_proj": "out",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}


def pretrained(source: nn.Module, net: Llama, theta: float) -> None:
    """Give ``net`` the weights of a ``LlamaForCausalLM``, and the base of its rotations."""
    weights: dict[str, Tensor] = {}
    for name, weight in source.state_dict().items():
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = weight
    head = 2 * net.inverse_frequency.numel()
    weights["inverse_frequency"] = 1.0 / theta ** (torch.arange(0, head, 2).float() / head)
    missing, _ = net.load_state_dict(weights, strict=False)
    assert not missing, missing


@torch.no_grad()
def timed(net: nn.Module, options: dict[str, dict[str, Any]], args: tuple[Any, ...], rounds: int) -> None:
    """One line a row of ``options``, of which the first is the exact model."""
    calls = {name: compiled_apart(net, effc.Options(**o)) for name, o in options.items()}
    kept = list(race({name: partial(call, *args) for name, call in calls.items()}, rounds + _WARM))[_WARM:]
    seconds = {name: [r[name] for r in kept] for name in calls}
    for name, found in seconds.items():
        ratio = Spread.of_ratios(seconds["exact"], found)
        print(
            f"{1e3 * Spread.of(found).median:9.3f} ms  {ratio.median:5.2f} ({ratio.low:.2f}-{ratio.high:.2f})  {name}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=float, nargs="+", default=[0.98, 0.95, 0.9])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    task = Language(0)
    prefill, decode = build("llama_prefill", small=False), build("llama_decode", small=False)
    net = prefill.module
    assert isinstance(net, Llama)
    pretrained(task.model, net, 100_000.0)
    position = torch.arange(task.calibration[0]["input_ids"].shape[1])
    batches = [(batch["input_ids"], position) for batch in task.calibration]
    calibration = effc.calibrate(net, batches, sensitivity="logits", held_out=0)
    options: dict[str, dict[str, Any]] = {"exact": {}}
    for share in args.kept:
        low_rank = {"parameters": share, "method": "output", "calibration": calibration}
        options[f"{share:.0%} kept"] = {"passes": {"low_rank": low_rank}}
    for name, call in (
        (f"prompt of {_PROMPT} tokens", (task.texts[0][:, :_PROMPT], torch.arange(_PROMPT))),
        ("decoding a token", decode.inputs(0, 0)),
    ):
        print(name)
        timed(net, options, call, args.rounds)


if __name__ == "__main__":
    main()
