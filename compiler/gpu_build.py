"""Graph text → ``GpuExecutable``: lowered for a GPU; triton compiles kernels in toolchain processes, in parallel, through the cache."""

from __future__ import annotations

import base64
import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import torch

from effc.compiler.build import digest, toolchain_key
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.gpu.installed import triton_version
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.expr import as_expr
from effc.compiler.ir.program import Program
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.toolchain import Toolchain
from effc.runtime import elf
from effc.runtime.cache import Cache
from effc.runtime.gpu.code import KernelCode, SpecCode
from effc.runtime.gpu.driver import Driver
from effc.runtime.gpu.executable import ALIGNMENT, GpuExecutable
from effc.runtime.guard import Unchanged

#: A kernel, and whether all that it is called on lies at multiples of `ALIGNMENT` bytes.
_Wanted = tuple[KernelSpec, bool]


def build_gpu(
    text: str,
    *,
    options: Mapping[str, Any],
    cache: Cache | None,
    target: GpuTarget,
    tools: Toolchain,
    driver: Driver,
    device: torch.device,
) -> GpuExecutable:
    """The executable of a graph's text. LoweringError: no kernel for something in it, or no triton; the region goes to ATen."""
    lowered = tools.request("lower", {"text": text, "options": {**options, "target": f"sm_{target.capability}"}})
    program = Program.from_json(lowered)
    programs = [program] if program.prepare is None else [program, program.prepare]
    wanted = [kernels_of(p) for p in programs]
    code = _code([w for kernels in wanted for w in kernels], cache, target, tools)
    unchanged = _unchanged(program, tools)
    prepare: GpuExecutable | None = None
    for made, kernels in zip(reversed(programs), reversed(wanted), strict=True):
        prepare = GpuExecutable(made, [code[w] for w in kernels], driver, device, unchanged, prepare)
    assert prepare is not None
    return prepare


def kernels_of(program: Program) -> list[_Wanted]:
    """The program's kernels. Bases are aligned, so a kernel's operands are where all offsets of its calls are multiples."""
    offset: set[int] = set()
    for call in program.calls:
        if any(c % ALIGNMENT for p in call.pointers for _, c in p.offset.terms):
            offset.add(call.kernel)
    return [(spec, i not in offset) for i, spec in enumerate(program.kernels)]


def _code(
    wanted: Sequence[_Wanted], cache: Cache | None, target: GpuTarget, tools: Toolchain
) -> dict[_Wanted, SpecCode]:
    """Code of each kernel; the first failure in order is raised."""
    distinct = list(dict.fromkeys(wanted))
    version = f"{toolchain_key()}, triton {triton_version()}"
    keys = {w: digest(w[0].digest(), str(w[1]), target.key, version) for w in distinct}
    found: dict[_Wanted, SpecCode] = {}
    for one in distinct:
        data = cache.get("objects", keys[one]) if cache is not None else None
        if data is not None:
            found[one] = _read(json.loads(data))
    missing = [w for w in distinct if w not in found]
    requests = [("gpu", {"spec": s.to_json(), "target": astuple(target), "aligned": a}) for s, a in missing]
    for one, reply in zip(missing, tools.map(requests), strict=True):
        found[one] = _read(reply)
        if cache is not None:
            cache.put("objects", keys[one], json.dumps(reply).encode())
    return found


def _read(reply: Mapping[str, Any]) -> SpecCode:
    launches = tuple(
        KernelCode(name, base64.b64decode(image), as_expr(grid), threads, shared, parameters)
        for name, image, grid, threads, shared, parameters in reply["launches"]
    )
    return SpecCode(launches, as_expr(reply["scratch"]))


def _unchanged(program: Program, tools: Toolchain) -> Unchanged:
    """The native comparison that guards over weights use, of a driver that calls no kernels."""
    host = Target.host()
    plain = replace(program, kernels=(), calls=(), prepare=None)
    target = [host.name, host.vector_bytes, sorted(host.features)]
    code = base64.b64decode(tools.request("driver", {"program": plain.to_json(), "target": target}))
    loaded = elf.load(code)
    function = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(loaded.symbols["effc_unchanged"])
    function.code = loaded  # type: ignore[attr-defined]  # its memory lives as long as the function
    return function
