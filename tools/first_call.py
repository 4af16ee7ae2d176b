"""The first call: with an empty cache in a fresh process, with a warm cache in a second one, and under ``aot_eager``.

    python tools/first_call.py --models resnet50,bert_base

Prints seconds from ``torch.compile`` to the first result (imports of torch apart), and the phases of the compiler.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from models import isolated


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,bert_base")
    parser.add_argument("--backend", default="effc")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--timeout", type=float, default=600.0)
    args = parser.parse_args()
    failed = False
    for name in args.models.split(","):
        size = ["--small"] if args.small else []
        with tempfile.TemporaryDirectory(prefix="first-call-") as cache:
            results = {
                what: isolated(name, ["--only-first", "--backend", backend, *size], cache, args.timeout)
                for what, backend in (
                    ("empty cache", args.backend),
                    ("warm cache", args.backend),
                    ("aot_eager", "aot_eager"),
                )
            }
        print(name)
        for what, result in results.items():
            if "first_call" not in result:
                failed = True
                print(f"  {what:12} {result['problems'][0]}")
                continue
            phases = sorted(result.get("phases", {}).items(), key=lambda item: -item[1])
            print(f"  {what:12} {result['first_call']:6.2f} s  " + ", ".join(f"{p} {s:.2f}" for p, s in phases))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
