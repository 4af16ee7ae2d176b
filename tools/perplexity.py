"""Perplexity of SmolLM2-135M on the standard library's source, compiled beside eager: they agree to four digits.

    make models                                              # once: the weights
    python tools/perplexity.py --backend effc --chunks 2
    python tools/perplexity.py --chunks 8 --context 1024 --dtype bfloat16

Exit code 1 where the two differ in the first four digits.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from smollm2 import load, perplexity, standard_library, windows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="effc")
    parser.add_argument("--chunks", type=int, default=8, help="windows of text")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load(getattr(torch, args.dtype))
    texts = windows(tokenizer.encode(standard_library()).ids, args.context, args.chunks)
    found = {}
    for name, call in (("eager", model), (args.backend, torch.compile(model, backend=args.backend))):
        start = time.perf_counter()
        found[name] = perplexity(call, texts)
        print(f"{name:>12}  {found[name]:.6f}  in {time.perf_counter() - start:.1f} s", flush=True)
    ours, eager = found[args.backend], found["eager"]
    print(f"{'difference':>12}  {ours / eager - 1:+.2e}, relative")
    return int(f"{ours:.4g}" != f"{eager:.4g}")


if __name__ == "__main__":
    sys.exit(main())
