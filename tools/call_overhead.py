"""What a call costs apart from arithmetic: a graph of three ops on 4x4 tensors, backends in turn in one process.

python tools/call_overhead.py --backends effc,inductor,aot_eager
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor


def three_ops(x: Tensor, y: Tensor) -> Tensor:
    return torch.relu(x @ y) + x


def per_call(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, calls: int) -> float:
    """Seconds a call, the mean over ``calls``."""
    start = time.perf_counter()
    for _ in range(calls):
        function(x, y)
    return (time.perf_counter() - start) / calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", default="effc,inductor")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=1000, help="calls a round")
    args = parser.parse_args()
    x, y = torch.randn(4, 4), torch.randn(4, 4)
    rivals: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"eager": three_ops}
    with torch.no_grad():
        for backend in args.backends.split(","):

            def function(x: Tensor, y: Tensor) -> Tensor:
                return torch.relu(x @ y) + x

            rivals[backend] = torch.compile(function, backend=backend)
            torch.testing.assert_close(rivals[backend](x, y), three_ops(x, y))
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(args.rounds):
            for name, rival in rivals.items():
                times[name].append(per_call(rival, x, y, args.calls))
    for name, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        print(f"{name:10} {middle * 1e6:7.2f} us a call (quartiles {low * 1e6:.2f}-{high * 1e6:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
