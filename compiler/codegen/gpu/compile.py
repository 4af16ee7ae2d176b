"""TTIR → cubin by the installed triton, which needs neither a GPU nor a driver for it. Runs where triton may be imported: a worker process.

What a compiled kernel asks of the hardware is read from the cubin, so that a bad candidate is known without a GPU: registers a thread,
bytes of its frame (spilled registers and local arrays; 0 is meant), shared memory of a block.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from effc.compiler.codegen.gpu.installed import triton_reason
from effc.compiler.codegen.gpu.launch import Launch
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import LoweringError
from effc.runtime.gpu.code import OWN_ALIGNMENT

#: Columns of tensor memory that a processor has, where it has any: PTX ISA, "Tensor Memory Addressing".
TENSOR_MEMORY = 512
_EM_CUDA = 190
#: Attributes of .nv.info whose value is a symbol and a number: EIATTR_FRAME_SIZE, EIATTR_REGCOUNT.
_FRAME_SIZE, _REGISTERS = 0x11, 0x2F
#: Lines of PTX that are no directive, label, brace or comment.
_INSTRUCTION = re.compile(r"^\s*(?:@!?%\w+\s+)?[a-z][\w.:]*\b[^:\n]*;", re.MULTILINE)


@dataclass(frozen=True)
class Compiled:
    """``parameters``: of the kernel's, in order, the bytes; those beyond a `Launch`'s are Triton's own pointers. ``own``: bytes of global
    memory that each program has for itself, at the first of these pointers; the others are null at a launch. ``instructions``: of the PTX.
    """

    cubin: bytes
    ptx: str
    name: str
    warps: int
    shared: int
    registers: int
    frame: int
    parameters: tuple[int, ...]
    own: int = 0

    @property
    def instructions(self) -> int:
        return len(_INSTRUCTION.findall(self.ptx))


def compile_launch(launch: Launch, target: GpuTarget) -> Compiled:
    """The code of a launch. LoweringError: no triton, or it refuses the kernel (its message is part of the text), or the kernel needs more
    shared or tensor memory than ``target`` has, or memory for triton's own profiles.
    """
    reason = triton_reason()
    if reason is not None:
        raise LoweringError(reason)
    import triton
    from triton.backends.compiler import GPUTarget

    with tempfile.TemporaryDirectory() as folder, _environment("TRITON_CACHE_DIR", folder):
        file = Path(folder) / "kernel.ttir"
        file.write_text(launch.text)
        # Subnormal numbers are numbers, also to libdevice.
        options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_reflect_ftz": False}
        try:
            made = triton.compile(str(file), target=GPUTarget("cuda", target.capability, 32), options=options)
        except Exception as error:
            raise LoweringError(f"triton {triton.__version__} does not compile {launch.name}: {error}") from error
    if made.metadata.shared > target.shared_bytes:
        raise LoweringError(
            f"{launch.name} needs {made.metadata.shared} bytes of shared memory, and a block of an sm_{target.capability} has at most "
            f"{target.shared_bytes}"
        )
    columns = getattr(made.metadata, "tmem_size", None) or 0
    if columns > TENSOR_MEMORY:
        raise LoweringError(
            f"{launch.name} needs {columns} columns of tensor memory, and a processor of an sm_{target.capability} has {TENSOR_MEMORY}"
        )
    own = getattr(made.metadata, "global_scratch_size", 0)
    aligned = not own or made.metadata.global_scratch_align <= OWN_ALIGNMENT
    if getattr(made.metadata, "profile_scratch_size", 0) or not aligned:
        raise LoweringError(f"{launch.name} needs global memory of triton's own, which effc's launches do not give")
    ptx, cubin = made.asm["ptx"], made.asm["cubin"]
    registers, frame = resources(cubin, launch.name)
    entry = ptx[ptx.index(f".entry {launch.name}(") :]
    parameters = tuple(int(bits) // 8 for bits in re.findall(r"\.param\s+\.[a-z](\d+)", entry[: entry.index("\n)")]))
    return Compiled(
        cubin, ptx, launch.name, made.metadata.num_warps, made.metadata.shared, registers, frame, parameters, own
    )


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """triton keeps what it compiled where the variable says; effc has a cache of its own."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def resources(cubin: bytes, name: str) -> tuple[int, int]:
    """Registers a thread and bytes of its frame of kernel ``name``; ValueError: not a cubin, or without the kernel."""
    if cubin[:4] != b"\x7fELF" or struct.unpack_from("<H", cubin, 18)[0] != _EM_CUDA:
        raise ValueError("not a cubin")
    sections = dict(_sections(cubin))
    if f".text.{name}" not in sections or ".nv.info" not in sections:
        raise ValueError(f"the cubin has no kernel {name}")
    pairs = [(attribute, struct.unpack("<II", v)[1]) for attribute, v in info_of(cubin, ".nv.info") if len(v) == 8]
    registers, frame = (
        max((n for attribute, n in pairs if attribute == a), default=0) for a in (_REGISTERS, _FRAME_SIZE)
    )
    return registers, frame


def info_of(cubin: bytes, section: str) -> Iterator[tuple[int, bytes]]:
    """The attributes of a section ``.nv.info`` or ``.nv.info.KERNEL`` that have a value of several bytes: EIATTR number and value."""
    data, at = dict(_sections(cubin))[section], 0
    while at + 4 <= len(data):
        form, attribute, size = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == 4:  # a value of so many bytes follows
            yield attribute, data[at : at + size]
            at += size


def _sections(image: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each section of a 64-bit ELF file."""
    (start,) = struct.unpack_from("<Q", image, 40)
    size, count, names = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", image, start + i * size) for i in range(count)]
    (table,) = (headers[names][4],)
    for name, kind, _, _, offset, length, *_ in headers:
        end = image.index(b"\0", table + name)
        content = b"" if kind == 8 else image[offset : offset + length]  # 8: a section without content
        yield image[table + name : end].decode(), content
