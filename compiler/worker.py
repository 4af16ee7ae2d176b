"""What a toolchain process runs: ``python -P -m effc.compiler.worker``. It never imports torch.

One JSON object a line comes in, ``{"kind": …, "payload": …}``, one goes out: ``{"result": …}`` or ``{"error": {"type", "message",
"traceback"}}``; code travels as base64. MLIR and LLVM write to the file descriptors 1 and 2 as they like, so replies go to a
private copy of 1, and 1 becomes 2, which the parent reads for its error messages. A file of one request, given as standard input,
reproduces a failure.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

IDLE_SECONDS = 300.0  # then the process gives its memory back; the pool starts another when one is needed
_WATCH_SECONDS = 1.0  # how often an idle process looks whether its parent lives
#: New objects between two collections: specs and expressions, which make no cycles, are all that there is much of.
_GC_OBJECTS = 200_000
#: What most requests need.
_MODULES = (
    "torch_mlir.ir",
    "effc.compiler.pipeline.lower",
    "effc.compiler.codegen.cpu.objects",
    "effc.compiler.codegen.cpu.loops",
    "effc.compiler.codegen.cpu.contraction",
    "effc.compiler.codegen.cpu.block",
    "effc.compiler.codegen.cpu.driver",
)


def _lower(payload: Mapping[str, Any]) -> Any:
    from effc.compiler.pipeline.lower import lower

    return lower(payload["text"], payload["options"]).to_json()


def _emit(payload: Mapping[str, Any]) -> str:
    from effc.compiler.codegen.cpu.emit import emit
    from effc.compiler.codegen.cpu.objects import compile_object
    from effc.compiler.ir.spec import KernelSpec

    target = _target(payload)
    return base64.b64encode(compile_object(emit(KernelSpec.from_json(payload["spec"]), target), target)).decode()


def _driver(payload: Mapping[str, Any]) -> str:
    from effc.compiler.codegen.cpu.driver import emit_driver
    from effc.compiler.codegen.cpu.objects import compile_object
    from effc.compiler.ir.program import Program

    text = emit_driver(Program.from_json(payload["program"]))
    return base64.b64encode(compile_object(text, _target(payload), opt_level=0)).decode()


def _object(payload: Mapping[str, Any]) -> str:
    from effc.compiler.codegen.cpu.objects import compile_object

    return base64.b64encode(compile_object(payload["text"], _target(payload))).decode()


def _gpu(payload: Mapping[str, Any]) -> dict[str, Any]:
    from effc.compiler.codegen.gpu.fitting import compile_fitting
    from effc.compiler.codegen.gpu.target import GpuTarget
    from effc.compiler.ir.spec import KernelSpec

    target = GpuTarget(*payload["target"])
    emitted, code = compile_fitting(
        KernelSpec.from_json(payload["spec"]), target, aligned=payload["aligned"], foresight=_foresight(target)
    )
    launches = []
    for launch, made in zip(emitted.launches, code, strict=True):
        image = base64.b64encode(made.cubin).decode()
        grid = str(launch.grid)
        launches.append([made.name, image, grid, 32 * made.warps, made.shared, len(made.parameters), made.own])
    return {
        "launches": launches,
        "scratch": str(emitted.scratch),
        "numbers": [str(n) for n in emitted.numbers],
        "facts": [[made.registers, made.frame, made.instructions] for made in code],
    }


def _gpu_tilings(payload: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All schedules of a contraction on tensor cores, by rising count; none where there is nothing to choose."""
    from effc.compiler.codegen.gpu.contraction.roles import find
    from effc.compiler.codegen.gpu.contraction.schedule import candidates
    from effc.compiler.codegen.gpu.target import GpuTarget
    from effc.compiler.ir.spec import KernelSpec

    roles = find(KernelSpec.from_json(payload["spec"]))
    if isinstance(roles, str):
        return []
    return [dict(s.parameters) for s in candidates(roles, GpuTarget(*payload["target"]), sys.maxsize)]


def _foresight(target: Any) -> Callable[[Sequence[Any]], Sequence[bool]]:
    """Which of a kernel's schedules are expected to spill or to be refused on ``target``."""
    from effc.compiler.gpu.described import described
    from effc.costmodel.gpu.foresight import expected_to_fail

    gpu = described(target)
    return lambda kernels: expected_to_fail(kernels, gpu)


def _target(payload: Mapping[str, Any]) -> Any:
    from effc.compiler.codegen.cpu.target import Target

    return Target.of_plain(payload["target"])


HANDLERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "lower": _lower,
    "emit": _emit,
    "driver": _driver,
    "object": _object,
    "gpu": _gpu,
    "gpu_tilings": _gpu_tilings,
}


def answer(line: bytes) -> dict[str, Any]:
    """The reply to one request. Every failure of a stage is an answer: the parent decides what it means."""
    try:
        request = json.loads(line)
        return {"result": HANDLERS[request["kind"]](request["payload"])}
    except Exception as err:
        return {"error": {"type": type(err).__name__, "message": str(err), "traceback": traceback.format_exc()}}


def main() -> None:
    """Answer requests until standard input ends, the parent is gone, or nothing was asked for `IDLE_SECONDS`."""
    parent = os.getppid()  # before the imports, in which it may end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes our input
    requests, replies = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    gc.set_threshold(_GC_OBJECTS)
    for module in _MODULES:
        if not _waiting(requests, 0):  # the parent still prepares its first request
            import_module(module)

    for line in _lines(requests, parent):
        reply = json.dumps(answer(line)).encode() + b"\n"
        sys.stdout.flush()
        sys.stderr.flush()
        while reply:
            reply = reply[os.write(replies, reply) :]


def _waiting(source: int, seconds: float) -> bool:
    """Whether something is to be read, now or soon."""
    return bool(select.select([source], [], [], seconds)[0])


def _lines(source: int, parent: int) -> Iterator[bytes]:
    asked, buffer = time.monotonic(), b""
    while os.getppid() == parent and time.monotonic() - asked < IDLE_SECONDS:
        if not _waiting(source, _WATCH_SECONDS):
            continue
        data = os.read(source, 1 << 20)
        if not data:
            return
        *lines, rest = data.split(b"\n")
        if not lines:
            buffer += rest
            continue
        for line in lines:
            yield buffer + line
            buffer = b""
        buffer, asked = rest, time.monotonic()


if __name__ == "__main__":
    main()
