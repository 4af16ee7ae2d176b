"""Graph text → ``GpuExecutable``: lowered for a GPU; triton compiles kernels in toolchain processes, in parallel, through the cache.

A program is kept as an ``Artifact``, whose objects are JSON (`SpecCode`), and whose driver is the host's part (`codegen.gpu.host`).
"""

from __future__ import annotations

import base64
import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from effc.compiler.build import BuildReport, cached_artifact, digest, lowered, machine_code, toolchain_key
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.gpu.hardware import OLDEST
from effc.compiler.codegen.gpu.host import host_code
from effc.compiler.codegen.gpu.installed import reads_descriptors, triton_reason, triton_version
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.gpu.choice import AtenOp, Verdict, judged
from effc.compiler.ir.errors import DeviceError, LoweringError
from effc.compiler.ir.expr import as_expr
from effc.compiler.ir.program import Call, Program
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.toolchain import Toolchain, toolchain
from effc.runtime import elf
from effc.runtime.artifact import Artifact
from effc.runtime.cache import Cache
from effc.runtime.gpu.code import KernelCode, SpecCode
from effc.runtime.gpu.device import CudaDevice, Device, allows_tf32, allows_tf32_convolutions, capability
from effc.runtime.gpu.driver import LaunchTable, cuda_driver
from effc.runtime.gpu.executable import GpuExecutable
from effc.runtime.gpu.launches import ALIGNMENT
from effc.runtime.guard import Unchanged

#: A kernel, and whether all that it is called on lies at multiples of `ALIGNMENT` bytes.
_Wanted = tuple[KernelSpec, bool]


@dataclass(frozen=True)
class GpuBuilt:
    """As ``build.Built``. ``artifact`` is what the cache keeps; ``effc.save`` does not take it."""

    executable: GpuExecutable
    artifact: Artifact
    report: BuildReport


@dataclass(frozen=True)
class HostCode:
    """The native functions of `codegen.gpu.host`, loaded from ``code``."""

    code: bytes
    unchanged: Unchanged
    launch: LaunchTable

    @staticmethod
    def load(code: bytes) -> HostCode:
        loaded = elf.load(code)
        i64, pointer = ctypes.c_int64, ctypes.c_void_p
        unchanged = ctypes.PYFUNCTYPE(i64, pointer, i64)(loaded.symbols["effc_unchanged"])
        launch = ctypes.CFUNCTYPE(i64, pointer, i64, pointer, pointer)(loaded.symbols["effc_launch"])
        for function in (unchanged, launch):
            function.code = loaded  # type: ignore[attr-defined]  # its memory lives as long as the function
        return HostCode(code, unchanged, launch)


class GpuBuilder:
    """Makes executables of regions on CUDA devices. ``options``: JSON values that the pipeline reads."""

    def __init__(self, options: Mapping[str, Any], cache: Cache | None) -> None:
        self._options, self._cache = options, cache

    def unusable(self, device: torch.device) -> str | None:
        """Why effc cannot compile for ``device``, and what to do; None where it can."""
        return _unusable(device)

    def build(self, text: str, device: torch.device) -> GpuBuilt:
        """LoweringError: no kernel for something in it, or the device refuses one; the region goes to ATen."""
        host = host_functions(toolchain(), self._cache)
        return build_gpu(text, options=self._options, cache=self._cache, device=self.device(device), host=host)

    def judged(self, built: GpuBuilt, call: Call, op: AtenOp) -> Verdict:
        """Whether a kernel that was built or ATen's op runs a product."""
        return judged(built.executable, call, op, target_of(built.executable.device), self._cache)

    def device(self, name: torch.device) -> CudaDevice:
        """As executables see it."""
        return _device(name, host_functions(toolchain(), self._cache).launch)

    def kernels(self, specs: Sequence[KernelSpec], name: torch.device, *, descriptors: bool = True) -> list[SpecCode]:
        """Kernels without a program, for operands at aligned addresses, all compiled at once. ``descriptors``: they may copy by them, where
        GPU and triton have them. LoweringError: the first that is refused.
        """
        kernels = _Kernels.on(self.device(name), self._cache, toolchain())
        if not descriptors:
            kernels = replace(kernels, target=replace(kernels.target, descriptors=False))
        code = kernels.code([(spec, True) for spec in specs])
        return [read_code(json.loads(code[spec, True])) for spec in specs]

    def unchanged(self) -> Unchanged:
        """The native comparison that executables take."""
        return host_functions(toolchain(), self._cache).unchanged


@lru_cache
def _unusable(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"effc compiles for CPUs and for NVIDIA GPUs, not for {device.type}"
    if torch.version.hip is not None:
        return "effc compiles for NVIDIA GPUs, and this torch is for AMD's"
    reason = triton_reason()
    if reason is not None:
        return reason
    try:
        cuda_driver()
    except DeviceError as error:
        return str(error)
    found = capability(device)
    return f"{device} is an sm_{found}: effc compiles for sm_{OLDEST} and newer" if found < OLDEST else None


@lru_cache
def _device(name: torch.device, launch_table: LaunchTable) -> CudaDevice:
    return CudaDevice(name, cuda_driver(), launch_table)


def host_functions(tools: Toolchain, cache: Cache | None) -> HostCode:
    """Of this process; compiled once a machine."""
    global _host
    if _host is None:
        target = Target.host()
        text = host_code()
        key = digest(text, target.key, toolchain_key())
        code = cache.get("objects", key) if cache is not None else None
        if code is None:
            code = machine_code(text, target, tools)
            if cache is not None:
                cache.put("objects", key, code)
        _host = HostCode.load(code)
    return _host


_host: HostCode | None = None


def build_gpu(
    text: str,
    *,
    options: Mapping[str, Any],
    cache: Cache | None,
    device: Device,
    host: HostCode,
    tools: Toolchain | None = None,
) -> GpuBuilt:
    """The executable of a graph's text. LoweringError: no kernel for something in it, or the device refuses one; the region goes to ATen.

    Products and convolutions of float32 are exact, or of TF32 where torch's settings allow it now.
    """
    kernels = _Kernels.on(device, cache, tools or toolchain())
    report = BuildReport()
    key = digest(text, json.dumps(options, sort_keys=True), kernels.target.key, kernels.version)
    artifact = cached_artifact(cache, key)
    report.from_cache = artifact is not None
    if artifact is None:
        artifact = _compiled(text, options, kernels, host, report)
        if cache is not None:
            cache.put("programs", key, artifact.to_bytes())
    with report.phase("load"):
        try:
            return GpuBuilt(_executable(artifact, device, host), artifact, report)
        except DeviceError as error:
            raise LoweringError(str(error)) from error


def _compiled(
    text: str, options: Mapping[str, Any], kernels: _Kernels, host: HostCode, report: BuildReport
) -> Artifact:
    """Where a kernel is refused and two products are one kernel, each gets its own: those may compile."""

    def lower(options: Mapping[str, Any]) -> Program:
        with report.phase("lower"):
            return lowered(text, options, astuple(kernels.target), kernels.tools)

    def emit(program: Program) -> Artifact:
        with report.phase("emit"):
            return _artifact(program, kernels, host)

    program = lower(options)
    try:
        return emit(program)
    except LoweringError as error:
        if not any(spec.template == "block" for part in program.parts for spec in part.kernels):
            raise
        note = f"products that would share a kernel have one each, as a kernel was refused: {error}"
    apart = lower({**options, "pairs": False})
    return emit(replace(apart, notes=(*apart.notes, note)))


def _artifact(program: Program, kernels: _Kernels, host: HostCode) -> Artifact:
    parts = program.parts
    wanted = [kernels_of(part) for part in parts]
    code = kernels.code([w for each in wanted for w in each])
    made: Artifact | None = None
    for part, each in zip(reversed(parts), reversed(wanted), strict=True):
        made = Artifact(part, tuple(code[w] for w in each), host.code, made)
    assert made is not None
    return made


def _executable(artifact: Artifact, device: Device, host: HostCode) -> GpuExecutable:
    prepare = _executable(artifact.prepare, device, host) if artifact.prepare is not None else None
    code = [read_code(json.loads(data)) for data in artifact.objects]
    return GpuExecutable(artifact.program, code, device, host.unchanged, prepare)


def kernels_of(program: Program) -> list[_Wanted]:
    """The program's kernels. Bases are aligned, so a kernel's operands are where all offsets of its calls are multiples."""
    offset: set[int] = set()
    for call in program.calls:
        if any(c % ALIGNMENT for p in call.pointers for _, c in p.offset.terms):
            offset.add(call.kernel)
    return [(spec, i not in offset) for i, spec in enumerate(program.kernels)]


def target_of(device: Device) -> GpuTarget:
    """With torch's settings of TF32 as they are now."""
    return GpuTarget(
        device.capability,
        device.processors,
        allows_tf32(),
        allows_tf32_convolutions(),
        reads_descriptors(device.capability),
    )


@dataclass(frozen=True)
class _Kernels:
    """Compiles kernels. ``version``: of what compiles them."""

    cache: Cache | None
    target: GpuTarget
    tools: Toolchain
    version: str

    @staticmethod
    def on(device: Device, cache: Cache | None, tools: Toolchain) -> _Kernels:
        return _Kernels(cache, target_of(device), tools, f"{toolchain_key()}, triton {triton_version()}")

    def code(self, wanted: Sequence[_Wanted]) -> dict[_Wanted, bytes]:
        """JSON of each kernel's `SpecCode`; the first failure in order is raised."""
        distinct = list(dict.fromkeys(wanted))
        keys = {w: digest(w[0].digest(), str(w[1]), self.target.key, self.version) for w in distinct}
        found: dict[_Wanted, bytes] = {}
        for one in distinct:
            data = self.cache.get("objects", keys[one]) if self.cache is not None else None
            if data is not None:
                found[one] = data
        missing = [w for w in distinct if w not in found]
        requests = [("gpu", {"spec": s.to_json(), "target": astuple(self.target), "aligned": a}) for s, a in missing]
        for one, reply in zip(missing, self.tools.map(requests), strict=True):
            found[one] = json.dumps(reply).encode()
            if self.cache is not None:
                self.cache.put("objects", keys[one], found[one])
        return found


def read_code(reply: Mapping[str, Any]) -> SpecCode:
    """What a toolchain process replied of a kernel."""
    launches = tuple(
        KernelCode(name, base64.b64decode(image), as_expr(grid), threads, shared, parameters, own)
        for name, image, grid, threads, shared, parameters, own in reply["launches"]
    )
    return SpecCode(launches, as_expr(reply["scratch"]), tuple(map(as_expr, reply["numbers"])))
