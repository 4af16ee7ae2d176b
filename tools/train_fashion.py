"""Trains a residual CNN on Fashion-MNIST through a backend and eagerly, step by step in turn, from one seed.

    apt-get install dataset-fashion-mnist                    # once
    python tools/train_fashion.py --steps 200
    python tools/train_fashion.py --steps 200 --json curve.json

Both copies see the same batches. Prints how far the loss curves are apart, the time a step and the accuracy on 1,000
images of the test set. A second eager copy, its weights moved by one part in 2**23 at the start, shows how far rounding
alone drives two curves apart: the compiled one is held to four times that.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import fashion_mnist
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from effc.bench.models.vision import FashionResNet

#: Test images whose labels are compared at the end.
_TESTED = 1000
#: Times the distance that rounding alone makes.
_TOLERANCE = 4.0


@dataclass
class Runner:
    """A model in training: its losses and the seconds of each step."""

    model: nn.Module
    call: Callable[[Tensor], Tensor]
    steps: int
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=self.steps)

    def step(self, images: Tensor, labels: Tensor) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.call(images), labels)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        self.model.eval()
        with torch.no_grad():
            return float((self.model(images).argmax(1) == labels).double().mean())


def nudged(model: nn.Module) -> nn.Module:
    """A copy whose weights differ by a random sign times one float32 eps."""
    moved = copy.deepcopy(model)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in moved.parameters():
            signs = torch.randint(0, 2, p.shape, generator=g) * 2 - 1
            p.mul_(1 + signs * torch.finfo(p.dtype).eps)
    return moved


def distance(a: list[float], b: list[float]) -> list[float]:
    """|a - b| / b, step by step."""
    return [abs(x - y) / y for x, y in zip(a, b, strict=True)]


def train(backend: str, steps: int, batch: int, width: int) -> dict[str, Runner]:
    """``backend``, ``eager`` and ``eager, nudged``, one step of each in turn."""
    images, labels = fashion_mnist.load("train")
    torch.manual_seed(0)
    model = FashionResNet(width).train()
    ours, other = copy.deepcopy(model), nudged(model)
    runners = {
        "eager": Runner(model, model, steps),
        "eager, nudged": Runner(other, other, steps),
        backend: Runner(ours, torch.compile(ours, backend=backend), steps),
    }
    g = torch.Generator().manual_seed(2)
    for _ in track(range(steps), "steps", transient=True):
        chosen = torch.randint(0, len(images), (batch,), generator=g)
        for runner in runners.values():
            runner.step(images[chosen], labels[chosen])
    return runners


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="effc")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--width", type=int, default=24, help="channels of the first block; the next have 2 and 4 times"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the curves and the seconds of every step")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runners = train(args.backend, args.steps, args.batch, args.width)
    images, labels = (t[:_TESTED] for t in fashion_mnist.load("t10k"))
    for name, runner in runners.items():
        print(
            f"{name:>14}  loss {runner.losses[0]:.4f} -> {statistics.mean(runner.losses[-10:]):.4f}"
            f"  accuracy {runner.accuracy(images, labels):.3f}"
            f"  first step {runner.seconds[0]:.2f} s, then {1e3 * statistics.median(runner.seconds[1:]):.1f} ms"
        )
    eager = runners["eager"].losses
    ours, rounding = (distance(runners[name].losses, eager) for name in (args.backend, "eager, nudged"))
    for name, apart in ((args.backend, ours), ("eager, nudged", rounding)):
        print(f"{name:>14}  from eager: median {statistics.median(apart):.2e}, largest {max(apart):.2e}, relative")
    if args.json:
        curves = {name: {"losses": r.losses, "seconds": r.seconds} for name, r in runners.items()}
        args.json.write_text(json.dumps(curves, indent=1))
    return int(statistics.median(ours) > _TOLERANCE * statistics.median(rounding))


if __name__ == "__main__":
    sys.exit(main())
