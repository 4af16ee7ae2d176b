"""One compilation with ``dynamic=True`` for many sequence lengths, against a static compilation of each.

    python tools/lengths.py --model bert_base --count 30

Of each length: the median of a call of both, taken in turn, and the median and quartiles of their ratio. Then how often the dynamic one
was compiled, and the largest ratio.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import torch._dynamo
import zoo
from torch._dynamo.utils import counters

from effc.cli.timing import race

#: Tokens of step 0 of the zoo's encoders.
_TOKENS = 128
_SHORTEST, _LONGEST = 7, 384


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("bert_base", "minilm_l6"), default="bert_base")
    parser.add_argument("--count", type=int, default=30, help=f"lengths, spread from {_SHORTEST} to {_LONGEST}")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    case = zoo.build(args.model, small=False)
    dynamic = torch.compile(case.module, backend="effc", dynamic=True)
    compilations, ratios = 0, []
    for i in range(args.count):
        length = _SHORTEST + round(i * (_LONGEST - _SHORTEST) / max(args.count - 1, 1))
        inputs = case.inputs(0, length - _TOKENS)
        with torch.no_grad():
            before = counters["stats"]["unique_graphs"]
            dynamic(*inputs)
            compilations += counters["stats"]["unique_graphs"] - before
            static = torch.compile(copy.deepcopy(case.module), backend="effc", dynamic=False)
            static(*inputs)
            rivals = {"dynamic": lambda: dynamic(*inputs), "static": lambda: static(*inputs)}  # noqa: B023
            rounds = list(race(rivals, args.rounds + 1))[1:]
        low, ratio, high = statistics.quantiles([r["dynamic"] / r["static"] for r in rounds], n=4)
        ratios.append(ratio)
        times = "  ".join(f"{name} {statistics.median(r[name] for r in rounds) * 1e3:7.2f} ms" for name in rivals)
        print(f"{length:4} tokens  {times}  ratio {ratio:.3f} ({low:.3f}-{high:.3f})", flush=True)
    print(f"compilations of the dynamic one: {compilations}; largest ratio {max(ratios):.3f}")
    return 0


if __name__ == "__main__":
    torch._dynamo.config.recompile_limit = 1000  # of the static ones
    sys.exit(main())
