"""Collecting from GPU kernels: what triton makes of products under many tilings, without a GPU; and how long they take, where there is one.

A layer is captured on the CPU and lowered for the GPU. Each of its products is then compiled under tilings drawn from all that the
template knows, good and bad, by toolchain processes in parallel.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from effc.apart import compiled_apart
from effc.collecting.collector import Outcome, sampled
from effc.collecting.held import held
from effc.collecting.shapes import Subject
from effc.collecting.sink import Sink
from effc.compiler.build import Built, lowered
from effc.compiler.capture import backend
from effc.compiler.capture.devices import Build
from effc.compiler.codegen.gpu.occupancy import resident_blocks
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.gpu.described import described
from effc.compiler.ir.equality import computation
from effc.compiler.ir.errors import EffcError, LoweringError, ToolchainCrash
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.toolchain import Toolchain
from effc.costmodel.gpu.machine import Gpu
from effc.costmodel.gpu.traces import Facts, GpuPart, GpuTrace, read, write

#: Families of the spread that are products.
PRODUCTS = ("linear", "gemm", "conv", "low_rank")
#: What a toolchain process replies about a kernel.
Reply = Mapping[str, Any]


class Clock(Protocol):
    """Times code on a GPU. ``model``: of the device."""

    model: str

    def seconds(self, spec: KernelSpec, reply: Reply) -> float | None:
        """Of one call of a compiled kernel; None: it cannot run now."""
        ...


@dataclass(frozen=True)
class GpuRequest:
    """What to collect. ``schedules``: tilings of one product at most, the template's own among them; ``seconds``: no subject is begun
    after these; ``clock``: None where code is only compiled.
    """

    folder: Path
    target: GpuTarget
    schedules: int
    seed: int
    seconds: float = float("inf")
    clock: Clock | None = None

    @property
    def gpu(self) -> Gpu:
        return described(self.target, self.clock.model if self.clock is not None else "")


def collect(
    subjects: Iterable[Subject],
    request: GpuRequest,
    tools: Toolchain,
    watch: Callable[[str, Outcome], None] = lambda text, outcome: None,
) -> Outcome:
    """Compile, and time, what the files of ``request.folder`` do not hold yet; an interruption loses at most the product in progress."""
    outcome = Outcome()
    finished, known = _held(request, outcome)
    stop = time.monotonic() + request.seconds
    sink = Sink[GpuTrace](
        lambda traces, done: write(request.folder, GpuPart(request.gpu, traces, done)), time.monotonic
    )
    with sink, ThreadPoolExecutor(tools.size) as threads:
        for subject in subjects:
            if time.monotonic() >= stop:
                break
            outcome.reached += 1
            name = f"{subject.name} x{request.schedules} seed {request.seed}"
            if name in finished:
                continue
            watch(subject.name, outcome)
            outcome.subjects += 1
            try:
                found = list(products(subject, request.target, tools))
            except Exception as error:  # also what a user's model raises: the other subjects are compiled all the same
                first, _, _ = str(error).partition("\n")
                outcome.lost[f"{subject.name}: {type(error).__name__}: {first}"] += 1
                continue
            lost = sum(outcome.lost.values())
            for op, spec in found:
                for trace in _traces(subject, op, spec, request, tools, threads, known, outcome):
                    sink.add(trace)
                    outcome.records += 1
            if sum(outcome.lost.values()) == lost:
                sink.finished.append(name)
    return outcome


def _traces(
    subject: Subject,
    op: str,
    spec: KernelSpec,
    request: GpuRequest,
    tools: Toolchain,
    threads: ThreadPoolExecutor,
    known: set[str],
    outcome: Outcome,
) -> Iterator[GpuTrace]:
    """Of one product under the tilings that are chosen for it and not ``known``, texts of specs, yet."""
    try:
        chosen = {json.dumps(one.to_json()): one for one in _sampled(spec, request, tools)}
    except EffcError as error:
        outcome.lost[type(error).__name__] += 1
        return
    own = next(iter(chosen), "")
    new = {text: one for text, one in chosen.items() if text not in known}
    outcome.known += len(chosen) - len(new)
    known.update(new)
    replies = threads.map(lambda one: _compiled(one, request.target, tools), new.values())
    for text, reply in zip(new, replies, strict=True):
        refused = isinstance(reply, LoweringError) and not isinstance(reply, ToolchainCrash)
        if isinstance(reply, EffcError) and not refused:
            outcome.lost[type(reply).__name__] += 1
        else:
            yield _trace(subject, op, chosen[text], text, text == own, reply, request)


def products(subject: Subject, target: GpuTarget, tools: Toolchain) -> Iterator[tuple[str, KernelSpec]]:
    """Name and spec of each contraction of known sizes that the subject's kernels are on such a GPU."""
    texts: list[str] = []

    def builder(options: Options) -> Build:
        build = backend.builder(options)

        def catching(text: str) -> Built:
            texts.append(text)
            return build(text)

        return catching

    torch._dynamo.reset()
    model, inputs = narrowed(*subject.make(), subject.name)
    options = Options(fallback="eager", passes=subject.passes)
    with torch.no_grad():
        compiled_apart(model, options, builder)(*inputs)
    seen: set[str] = set()
    for text in texts:
        for program in lowered(text, options.of_code(), astuple(target), tools).parts:
            names = {call.kernel: call.name for call in program.calls}
            for number, spec in enumerate(program.kernels):
                if spec.template != "contraction" or spec.symbols or spec.schedule.parameters:
                    continue
                if (name := computation(spec)) not in seen:
                    seen.add(name)
                    yield names.get(number) or spec.template, spec


def narrowed(
    model: Callable[..., Any], inputs: tuple[Any, ...], name: str
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Most of what the spread has in float32 with 16 bits, as models on GPUs have."""
    dtype = random.Random(name).choice((torch.float16, torch.float16, torch.bfloat16, torch.float32))
    if not isinstance(model, nn.Module):
        return model, inputs

    def cast(tensor: Any) -> Any:
        return tensor.to(dtype) if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 else tensor

    return model.to(dtype), tuple(map(cast, inputs))


def _sampled(spec: KernelSpec, request: GpuRequest, tools: Toolchain) -> list[KernelSpec]:
    """``spec`` with the template's own tiling, and with others at random; none where there is no choice."""
    offered = tools.request("gpu_tilings", {"spec": spec.to_json(), "target": astuple(request.target)})
    if not offered:
        return []
    draw = random.Random(f"{request.seed} {computation(spec)}")
    return sampled([spec.with_schedule(**tiling) for tiling in offered], request.schedules, draw)


def _compiled(spec: KernelSpec, target: GpuTarget, tools: Toolchain) -> Reply | EffcError:
    try:
        reply: Reply = tools.request("gpu", {"spec": spec.to_json(), "target": astuple(target), "aligned": True})
        return reply
    except EffcError as error:
        return error


def _trace(
    subject: Subject, op: str, spec: KernelSpec, text: str, own: bool, reply: Reply | EffcError, request: GpuRequest
) -> GpuTrace:
    """``text``: the spec's."""
    trace = GpuTrace(
        computation=computation(spec),
        family=subject.family,
        subject=subject.name,
        op=op,
        spec=text,
        own_choice=own,
    )
    if isinstance(reply, EffcError):
        return replace(trace, refusal=str(reply))
    facts = _facts(reply, request.target)
    return replace(trace, facts=facts, median=request.clock.seconds(spec, reply) if request.clock else None)


def _facts(reply: Reply, target: GpuTarget) -> Facts:
    """Of the first launch, which is the product."""
    _, _, _, threads, shared, *_ = reply["launches"][0]
    registers, frame, instructions = reply["facts"][0]
    warps = threads // 32
    return Facts(registers, frame, shared, warps, resident_blocks(target, warps, registers, shared), instructions)


def _held(request: GpuRequest, outcome: Outcome) -> tuple[set[str], set[str]]:
    """Subjects that are finished, and specs that are known, for this GPU."""
    finished: set[str] = set()
    known: set[str] = set()
    for part in held(request.folder, read, outcome.unreadable):
        if part.gpu == request.gpu:
            finished.update(part.finished)
            known.update(trace.spec for trace in part.traces)
    return finished, known
