"""The first call: with an empty cache in a fresh process, with a warm cache in a second one, under ``aot_eager``, and saved.

    python tools/first_call.py --models resnet50,bert_base

Prints seconds from ``torch.compile`` to the first result (imports of torch apart), and the phases of the compiler; of a saved model
seconds from ``effc.load`` to the first result, in a process that has imported nothing but torch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from models import isolated


def save(name: str, small: bool, folder: Path) -> None:
    """The model, and inputs for it."""
    import torch
    import zoo

    import effc

    case = zoo.build(name, small)
    torch.save(case.inputs(0, 0), folder / "inputs.pt")
    effc.save(case.module, case.inputs(0, 0), folder / "model")


def load(folder: Path) -> None:
    """Prints the seconds."""
    import torch

    inputs = torch.load(folder / "inputs.pt")
    start = time.perf_counter()
    import effc

    effc.load(folder / "model")(*inputs)
    print(time.perf_counter() - start)


def saved(name: str, small: bool) -> str:
    """Seconds from ``effc.load`` to the first result, or the error."""
    with tempfile.TemporaryDirectory(prefix="first-call-") as folder:
        size = ["--small"] if small else []
        for step in (["--save", name, *size], ["--load"]):
            done = subprocess.run(
                [sys.executable, "-P", __file__, "--folder", folder, *step], capture_output=True, text=True, check=False
            )
            if done.returncode:
                return done.stderr.strip().splitlines()[-1]
        return f"{float(done.stdout):6.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,bert_base")
    parser.add_argument("--backend", default="effc")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.save:
        save(args.save, args.small, args.folder)
        return 0
    if args.load:
        load(args.folder)
        return 0
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
        print(f"  {'effc.load':12} {saved(name, args.small)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
