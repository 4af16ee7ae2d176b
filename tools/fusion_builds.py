"""A model compiled twice, with block fusion and without, in one process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn

from effc.apart import compiled_apart
from effc.compiler import build
from effc.compiler.build import Built
from effc.compiler.capture import backend
from effc.compiler.capture.devices import Build
from effc.compiler.capture.recording import record
from effc.compiler.codegen.cpu.block import plan as block
from effc.compiler.codegen.cpu.winograd import plan as winograd
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.toolchain import Toolchain
from effc.costmodel.hardware import flags
from effc.costmodel.traffic import Layer, layers_of
from effc.runtime.cache import Cache
from effc.runtime.executable import Executable

_WORKER = Path(__file__).with_name("unfused_worker.py")


@dataclass(frozen=True)
class Compiled:
    """``call``: as a user calls the model. ``scratch``: bytes of each layer's scratch memory that one thread uses. ``regions``: each with
    the arguments of its last call.
    """

    call: Callable[..., Any]
    layers: tuple[Layer, ...]
    scratch: tuple[int, ...]
    regions: tuple[_Region, ...]

    def activations(self, threads: int) -> int:
        """Bytes of what kernels write and someone still reads, results and scratch memory of so many threads included, at their most."""
        written = {t.piece for layer in self.layers for t in layer.touches if t.written}
        held: dict[int, int] = {}
        most = 0
        for layer, scratch in zip(self.layers, self.scratch, strict=True):
            own = [t for t in layer.touches if t.piece in written]
            for touch in own:
                held[touch.piece] = max(held.get(touch.piece, 0), touch.read, touch.written)
            most = max(most, sum(held.values()) + threads * scratch)
            for touch in own:
                if not touch.kept:
                    del held[touch.piece]
        return most

    def native(self) -> Callable[[], None]:
        """The regions one after the other, without what lies around them: a call of microseconds is timed by its kernels."""
        calls = [region.native() for region in self.regions]

        def run() -> None:
            for call in calls:
                call()

        return run


@dataclass
class _Region:
    executable: Executable
    arguments: tuple[Sequence[int], Sequence[Tensor]] | None = None

    def __call__(
        self, symbols: Sequence[int], tensors: Sequence[Tensor], *, validate: bool = False
    ) -> Sequence[Tensor]:
        self.arguments = (symbols, tensors)
        return self.executable(symbols, tensors, validate=validate)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executable, name)

    def native(self) -> Callable[[], None]:
        """The driver's call, on results and an arena that it keeps."""
        assert self.arguments is not None, "the region has been called"
        entered = self.executable._enter(*self.arguments)
        function, address = self.executable._native, entered[0].address

        def call(_held: Any = (entered, self.arguments)) -> None:
            function(address)

        return call


@contextmanager
def builds() -> Iterator[tuple[Build, Build]]:
    """The builders with and without block fusion; the latter's programs are cached apart, and for this process alone."""
    with TemporaryDirectory() as folder:
        tools, kept = Toolchain(command=(sys.executable, "-P", str(_WORKER))), Cache(folder)
        try:
            yield backend.builder(Options()), partial(build.build, options=Options().of_code(), cache=kept, tools=tools)
        finally:
            tools.close()


def compiled(module: nn.Module, inputs: tuple[Any, ...], builder: Build) -> Compiled:
    """``module`` in inference, called once on ``inputs``."""
    regions: list[_Region] = []

    def watching(text: str) -> Built:
        built = builder(text)
        regions.append(_Region(built.executable))
        return replace(built, executable=cast(Executable, regions[-1]))

    call = compiled_apart(module, Options(), lambda options: watching)
    with torch.no_grad(), record() as recording:
        call(*inputs)
    specs = [program.kernels[c.kernel] for program, _ in recording.programs for c in program.calls]
    layers = layers_of(recording.programs, flags())
    scratch = tuple(_of_one_thread(spec, layer.scratch) for spec, layer in zip(specs, layers, strict=True))
    return Compiled(call, layers, scratch, tuple(r for r in regions if r.arguments))


def _of_one_thread(spec: KernelSpec, scratch: int) -> int:
    """Blocks and Winograd's method have an equal part for each thread that there may be; what others have is counted whole."""
    parts = {"block": block.MOST_THREADS, "contraction": winograd.MOST_THREADS if spec.schedule.get("winograd") else 1}
    return scratch // parts.get(spec.template, 1)


def in_turn(calls: Sequence[Callable[[], Any]], rounds: int, seconds: float, rest: float = 0.0) -> list[list[float]]:
    """Seconds a call of each, a sample a round: the mean of as many calls as take ``seconds``, after ``rest`` and half as many that are not
    timed. Who goes first changes from round to round.
    """
    counts = [_calls_in(call, seconds) for call in calls]
    found: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        for i in range(len(calls)):
            which = (i + turn) % len(calls)
            call, count = calls[which], counts[which]
            time.sleep(rest)
            for _ in range((count + 1) // 2):
                call()
            started = time.perf_counter()
            for _ in range(count):
                call()
            found[which].append((time.perf_counter() - started) / count)
    return found


def _calls_in(call: Callable[[], Any], seconds: float) -> int:
    call()
    started = time.perf_counter()
    call()
    call()
    return max(1, round(2 * seconds / (time.perf_counter() - started)))
