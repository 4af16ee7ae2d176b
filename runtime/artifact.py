"""A compiled program as one piece of bytes: what the cache keeps and ``effc.save`` writes. JSON and raw code, no pickle."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from effc.compiler.ir.errors import ArtifactError
from effc.compiler.ir.program import Program
from effc.runtime.executable import Executable

_MAGIC = b"effc program 2\n"


@dataclass(frozen=True)
class Artifact:
    """``objects``: code of each kernel of ``program``, in order; ``driver``: that of ``effc_program``; ``prepare``: likewise.

    ``report``: what the compiler has to say about it (JSON values).
    """

    program: Program
    objects: tuple[bytes, ...]
    driver: bytes
    prepare: Artifact | None = None
    report: Mapping[str, Any] = field(default_factory=dict)

    def executable(self) -> Executable:
        """The program, loaded."""
        prepare = self.prepare.executable() if self.prepare is not None else None
        return Executable(self.program, self.objects, self.driver, prepare)

    def to_bytes(self) -> bytes:
        blobs: list[bytes] = []
        header = json.dumps(self._describe(blobs)).encode()
        return b"".join([_MAGIC, struct.pack("<Q", len(header)), header, *blobs])

    def _describe(self, blobs: list[bytes]) -> dict[str, Any]:
        """The header; the code itself goes to ``blobs``."""
        blobs += [*self.objects, self.driver]
        return {
            "program": {**self.program.to_json(), "prepare": None},
            "objects": [len(code) for code in self.objects],
            "driver": len(self.driver),
            "prepare": None if self.prepare is None else self.prepare._describe(blobs),
            "report": dict(self.report),
        }

    @staticmethod
    def from_bytes(data: bytes) -> Artifact:
        """What ``to_bytes`` wrote; ArtifactError where ``data`` is not that."""
        if not data.startswith(_MAGIC):
            raise ArtifactError("not a program compiled by this version of effc; compile it again")
        try:
            (size,) = struct.unpack_from("<Q", data, len(_MAGIC))
            start = len(_MAGIC) + 8
            artifact, end = _read(json.loads(data[start : start + size]), data, start + size)
        except (struct.error, KeyError, TypeError, ValueError, IndexError) as err:
            raise ArtifactError(f"a compiled program is damaged ({err!r}); compile it again") from err
        if end != len(data):
            raise ArtifactError(f"a compiled program should have {end} bytes, and has {len(data)}; compile it again")
        return artifact


def _read(header: Mapping[str, Any], data: bytes, at: int) -> tuple[Artifact, int]:
    code = []
    for size in (*header["objects"], header["driver"]):
        code.append(data[at : at + size])
        at += size
    prepare = None
    if header["prepare"] is not None:
        prepare, at = _read(header["prepare"], data, at)
    program = Program.from_json({**header["program"], "prepare": header["prepare"] and header["prepare"]["program"]})
    return Artifact(program, tuple(code[:-1]), code[-1], prepare, header["report"]), at
