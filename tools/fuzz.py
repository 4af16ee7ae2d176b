"""Random graphs through ``torch.compile``, each against eager and float64; failing ones are shrunk and written as
programs.

    python tools/fuzz.py --count 2000                    # seeds 0 … 1999, static shapes
    python tools/fuzz.py --count 500 --dynamic           # one compiled function at several sizes
    python tools/fuzz.py --count 200 --mode train        # with gradients; --mode autocast: under bfloat16 autocast
    python tools/fuzz.py --start 137 --count 1 --show    # print the program of a seed, and check it
    python tools/fuzz.py --run failures/137.py           # check a program again

The exit status is 1 where a program failed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
from collections import Counter
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import isolated
from fuzz.check import MODES, Outcome
from fuzz.generate import generate
from fuzz.program import Program
from fuzz.shrink import shrink

WORKER = Path(__file__).resolve().parents[1] / "tests" / "fuzz" / "worker.py"


class Fuzzer:
    """Checks programs in a worker process of its own."""

    def __init__(self, backend: str, dynamic: bool, mode: str, timeout: float) -> None:
        self.worker = isolated.Worker(WORKER, backend)
        self.dynamic, self.mode, self.timeout = dynamic, mode, timeout

    def check(self, source: str, seed: int) -> Outcome:
        request = {"source": source, "seed": seed, "dynamic": self.dynamic, "mode": self.mode}
        try:
            (answer,) = self.worker.answers(request, self.timeout)
        except isolated.WorkerDied as err:
            return Outcome("crash", str(err))
        return Outcome(**answer)

    def shrink(self, program: Program, found: Outcome) -> tuple[Program, Outcome]:
        """The smallest program with the same status, and its outcome."""
        last = found

        def fails(candidate: Program) -> bool:
            nonlocal last
            outcome = self.check(candidate.source(), candidate.seed)
            if outcome.status == found.status:
                last = outcome
            return outcome.status == found.status

        return shrink(program, fails), last


def save(folder: Path, program: Program, outcome: Outcome, dynamic: bool) -> Path:
    """Write the program; its first lines say what is wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'dynamic-' if dynamic else ''}{program.seed}.py"
    comment = "\n".join(f"# {line}" for line in f"seed {program.seed}: {outcome.status}: {outcome.detail}".splitlines())
    path.write_text(f"{comment}\n{program.source()}")
    return path


def run(seeds: range, args: argparse.Namespace) -> Counter[str]:
    """Check every seed in ``--jobs`` workers; failures are printed as they come."""
    counts: Counter[str] = Counter()
    numbers, lock = itertools.count(seeds.start), threading.Lock()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("programs", total=len(seeds))

        def work() -> None:
            fuzzer = Fuzzer(args.backend, args.dynamic, args.mode, args.timeout)
            try:
                while (seed := next(numbers)) < seeds.stop:
                    program = generate(seed, args.dynamic)
                    outcome = fuzzer.check(program.source(), seed)
                    if outcome.failed and not args.no_shrink:
                        program, outcome = fuzzer.shrink(program, outcome)
                    with lock:
                        counts[outcome.status] += 1
                        if outcome.failed:
                            where = save(args.failures, program, outcome, args.dynamic)
                            progress.console.print(
                                f"{where}: {outcome.status}: {outcome.detail}", markup=False, soft_wrap=True
                            )
                        progress.update(task, advance=1, description=f"seed {seed}")
            finally:
                fuzzer.worker.stop()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(args.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="effc")
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=200, help="number of seeds")
    parser.add_argument("--dynamic", action="store_true", help="dynamic=True, several sizes")
    parser.add_argument("--mode", choices=MODES, default="plain", help="train: with gradients; autocast: under it")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a program may take")
    parser.add_argument("--failures", type=Path, default=Path("failures"), help="folder for failing programs")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--show", action="store_true", help="print each program")
    parser.add_argument("--run", type=Path, help="check this program instead")
    args = parser.parse_args()
    if args.run:
        fuzzer = Fuzzer(args.backend, args.dynamic or args.run.name.startswith("dynamic-"), args.mode, args.timeout)
        outcome = fuzzer.check(args.run.read_text(), int(args.run.stem.split("-")[-1]))
        fuzzer.worker.stop()
        print(f"{outcome.status} {outcome.detail}")
        return int(outcome.failed)
    seeds = range(args.start, args.start + args.count)
    if args.show:
        for seed in seeds:
            print(generate(seed, args.dynamic).source())
    counts = run(seeds, args)
    print(f"{len(seeds)} programs: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    return int(any(counts[s] for s in ("mismatch", "error", "crash")))


if __name__ == "__main__":
    sys.exit(main())
