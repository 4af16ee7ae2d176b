"""Graph text → ``Executable``, through the caches: nothing that is known already is compiled again.

::

    text + options + toolchain + host ──► program  (Program, code, driver; one file)       a hit starts no process
                                            │ miss
    lower ──► KernelSpecs ──► objects, each by spec + target + toolchain; the missing ones, and the driver, in parallel
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import effc.compiler
import effc.passes
import effc.runtime
from effc.compiler.clock import adding
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import ArtifactError
from effc.compiler.ir.program import Program
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.toolchain import Toolchain, toolchain
from effc.runtime.artifact import Artifact
from effc.runtime.cache import Cache
from effc.runtime.executable import Executable

#: What happened since the process started; a test or the report looks at differences.
counters: dict[str, int] = dict.fromkeys(
    ("program_hits", "program_misses", "object_hits", "object_misses", "bad_programs"), 0
)


@dataclass
class BuildReport:
    """Seconds by phase (``lower``, ``emit``, ``load``), and where the program came from."""

    seconds: dict[str, float] = field(default_factory=dict)
    from_cache: bool = False
    kernels: int = 0
    compiled: int = 0

    def phase(self, name: str) -> AbstractContextManager[None]:
        return adding(self.seconds, name)


@dataclass(frozen=True)
class Built:
    """``artifact`` is what can be saved."""

    executable: Executable
    artifact: Artifact
    report: BuildReport


def build(
    text: str,
    *,
    options: Mapping[str, Any],
    cache: Cache | None,
    target: Target | None = None,
    tools: Toolchain | None = None,
) -> Built:
    """The executable of a graph's text. LoweringError, ToolchainCrash: the region goes to ATen.

    ``options`` are JSON values that the pipeline reads; ``target`` is the host, ``tools`` this process's pool.
    """
    target = target or Target.host()
    report = BuildReport()
    key = digest(text, json.dumps(options, sort_keys=True), target.key, toolchain_key())
    artifact = cached_artifact(cache, key)
    report.from_cache = artifact is not None
    counters["program_hits" if artifact is not None else "program_misses"] += 1
    if artifact is not None:
        try:
            with report.phase("load"):
                return Built(artifact.executable(), artifact, report)
        except ArtifactError:
            counters["bad_programs"] += 1
            assert cache is not None
            cache.discard("programs", key)
            report = BuildReport()
    compiler = _Compiler(tools or toolchain(), target, cache, report)
    compiler.tools.warm()  # while one process lowers the graph, the others import MLIR
    with report.phase("lower"):
        program = lowered(text, options, target.name, compiler.tools)
    artifact = compiler.compile(program)
    with report.phase("load"):
        executable = artifact.executable()
    if cache is not None:
        cache.put("programs", key, artifact.to_bytes())
    return Built(executable, artifact, report)


def lowered(text: str, options: Mapping[str, Any], target: str | Sequence[Any], tools: Toolchain) -> Program:
    """The program of a graph's text, without code; see `build`. ``target``: a CPU's name, or the fields of a GPU's (`target_of`)."""
    return Program.from_json(tools.request("lower", {"text": text, "options": {**options, "target": target}}))


def machine_code(text: str, target: Target, tools: Toolchain) -> bytes:
    """The object of a module of MLIR; LoweringError where there is no code for ``target``."""
    return base64.b64decode(tools.request("object", {"text": text, "target": target.plain}))


def cached_artifact(cache: Cache | None, key: str) -> Artifact | None:
    """What the cache has for ``key``; what is damaged is discarded."""
    data = cache.get("programs", key) if cache is not None else None
    if cache is None or data is None:
        return None
    try:
        return Artifact.from_bytes(data)
    except ArtifactError:
        counters["bad_programs"] += 1
        cache.discard("programs", key)
        return None


@dataclass(frozen=True)
class _Compiler:
    tools: Toolchain
    target: Target
    cache: Cache | None
    report: BuildReport

    def compile(self, program: Program) -> Artifact:
        """Code for a program and for the one that prepares its weights."""
        programs = program.parts
        specs = {spec.digest(): spec for p in programs for spec in p.kernels}
        requests = [("driver", {"program": p.to_json(), "target": self.target.plain}) for p in programs]
        with self.report.phase("emit"), ThreadPoolExecutor(1) as beside:
            drivers = beside.submit(self.tools.map, requests)
            objects = self._objects(specs)
        artifacts = [
            Artifact(p, tuple(objects[spec.digest()] for spec in p.kernels), base64.b64decode(driver))
            for p, driver in zip(programs, drivers.result(), strict=True)
        ]
        prepare = artifacts[1] if len(artifacts) > 1 else None
        return Artifact(program, artifacts[0].objects, artifacts[0].driver, prepare)

    def _objects(self, specs: Mapping[str, KernelSpec]) -> dict[str, bytes]:
        """Code by the digest of its spec."""
        found, missing = objects(specs, self.target, self.cache, self.tools)
        self.report.kernels, self.report.compiled = len(specs), missing
        return found


def objects(
    specs: Mapping[str, KernelSpec], target: Target, cache: Cache | None, tools: Toolchain
) -> tuple[dict[str, bytes], int]:
    """Code of kernels, by the digests of their specs, and how many were compiled for it; the first failure in order is raised."""
    keys = {name: digest(name, target.key, toolchain_key()) for name in specs}
    found: dict[str, bytes] = {}
    for name in specs:
        code = cache.get("objects", keys[name]) if cache is not None else None
        if code is not None:
            found[name] = code
    missing = [name for name in specs if name not in found]
    counters["object_hits"] += len(found)
    counters["object_misses"] += len(missing)
    requests = [("emit", {"spec": specs[name].to_json(), "target": target.plain}) for name in missing]
    for name, code in zip(missing, tools.map(requests), strict=True):
        found[name] = base64.b64decode(code)
        if cache is not None:
            cache.put("objects", keys[name], found[name])
    return found, len(missing)


def digest(*parts: str) -> str:
    """A cache key."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@lru_cache(maxsize=1)
def toolchain_key() -> str:
    """What compiled code depends on besides its input: MLIR's version, and effc's own sources."""
    sources = hashlib.sha256()
    for package in (effc.compiler, effc.passes, effc.runtime):
        root = Path(package.__file__ or "").parent
        for path in sorted(root.rglob("*.py")):
            sources.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return f"torch-mlir {version('torch-mlir')}, effc {sources.hexdigest()}"
