"""How much faster a compressed model runs than the exact one, both by effc, in turn.

    python tools/compressed_speed.py --model llama_decode '{"low_rank": {"rank_ratio": 0.375}}'
    python tools/compressed_speed.py --model mobilenet_v2 '{"sparsity": {"pattern": "4x1", "sparsity": 0.9}}'

``--model``: one of ``effc bench``'s, with its random weights, whose time is that of trained ones. Each further argument: the option
``passes`` as JSON; one that says ``"calibration": true`` gets a calibration made from three batches. Printed, after rounds in each of which
all are called: medians, how many times faster than the exact model (20th to 80th percentile over the rounds), and the
relative L2 distance to it. Each has code of its own for Dynamo, which would otherwise try the guards of the others first.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

import torch

import effc
from effc.apart import compiled_apart
from effc.bench.models import build
from effc.bench.spread import Spread
from effc.bench.systems.system import tensors
from effc.calibrating.calibration import cloned
from effc.cli.timing import race

#: Rounds that are not counted.
_WARM = 2


def passes_of(text: str, calibration: effc.Calibration | None) -> dict[str, Any]:
    """The option, calibration put in where it is asked for."""
    found: dict[str, Any] = json.loads(text)
    for options in found.values():
        if isinstance(options, dict) and options.get("calibration") is True:
            options["calibration"] = calibration
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("passes", nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    case = build(args.model, small=False)
    inputs = case.inputs(0, 0)
    asked = any('"calibration"' in text for text in args.passes)
    batches = [case.inputs(seed, 0) for seed in (1, 2, 3)]
    calibration = effc.calibrate(case.module, batches, held_out=0) if asked else None
    chosen: dict[str, dict[str, Any]] = {"exact": {}} | {
        text: {"passes": passes_of(text, calibration)} for text in args.passes
    }
    calls = {name: compiled_apart(case.module, effc.Options(**o)) for name, o in chosen.items()}
    with torch.no_grad():
        outputs = {name: tensors(call(*cloned(inputs)))[0] for name, call in calls.items()}
        rounds = list(race({name: partial(call, *inputs) for name, call in calls.items()}, args.rounds + _WARM))[_WARM:]
    seconds = {name: [r[name] for r in rounds] for name in calls}
    for name in calls:
        ratio = Spread.of_ratios(seconds["exact"], seconds[name])
        off = float((outputs[name] - outputs["exact"]).norm() / outputs["exact"].norm())
        median = 1e3 * Spread.of(seconds[name]).median
        print(f"{median:8.3f} ms  {ratio.median:5.2f} ({ratio.low:.2f}-{ratio.high:.2f})  {off:8.1e}  {name}")


if __name__ == "__main__":
    main()
