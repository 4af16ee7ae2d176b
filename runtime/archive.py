"""Tensors and JSON values in one file: a digest that is checked, nothing that is executed, and tensors mapped, not copied.

::

    effc archive 1 | sha256 of what follows | length of the header (u64) | header (JSON) | tensors, each aligned to 64 bytes

The header holds the caller's values and each tensor's dtype, sizes, strides and place. The digest is one of digests, of the
header and of each tensor, so that threads share the work.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from effc.compiler.ir.errors import ArtifactError

_MAGIC = b"effc archive 1\n"
_DIGEST_BYTES = 32
_ALIGNMENT = 64


@dataclass(frozen=True)
class Archive:
    """``values``: what the writer gave; ``tensors`` lie in the mapped file (changing them does not change the file)."""

    values: Mapping[str, Any]
    tensors: tuple[torch.Tensor, ...]
    digest: str


def write(path: str | os.PathLike[str], kind: str, values: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> str:
    """Write an archive of ``kind`` (such as ``"calibration 1"``), replacing a file in one step; returns its digest."""
    head, blobs = encode(kind, values, tensors)
    temporary = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(head)
            for blob in blobs:
                file.write(blob)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return _hex(head)


def digest(kind: str, values: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> str:
    """That of the archive that ``write`` would make."""
    return _hex(encode(kind, values, tensors)[0])


def encode(kind: str, values: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> tuple[bytes, list[bytes]]:
    """The head of the file, digest included, and its tensors' bytes."""
    entries, blobs, at = [], [], 0
    for tensor in tensors:
        data = _bytes_of(tensor)
        entries.append([str(tensor.dtype).removeprefix("torch."), list(tensor.shape), list(tensor.stride()), at])
        blobs.append(data + bytes(-len(data) % _ALIGNMENT))
        at += len(blobs[-1])
    header = json.dumps({"kind": kind, "values": values, "tensors": entries, "bytes": at}).encode()
    body = struct.pack("<Q", len(header)) + header
    body += bytes(-(len(_MAGIC) + _DIGEST_BYTES + len(body)) % _ALIGNMENT)
    return _MAGIC + _digest([body, *blobs]) + body, blobs


def read(path: str | os.PathLike[str], kind: str) -> Archive:
    """What ``write`` wrote. ArtifactError: unreadable, of another kind or version, truncated, or edited."""
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as err:  # ValueError: the file is empty
        raise ArtifactError(f"{path} cannot be read: {err}") from err
    body = len(_MAGIC) + _DIGEST_BYTES
    if data[: len(_MAGIC)] != _MAGIC:
        raise ArtifactError(f"{path} was not written by this version of effc")
    try:
        (size,) = struct.unpack_from("<Q", data, body)
        header = json.loads(data[body + 8 : body + 8 + size])
        start = -(-(body + 8 + size) // _ALIGNMENT) * _ALIGNMENT
        found, end = header["kind"], start + header["bytes"]
    except (struct.error, ValueError, KeyError, TypeError) as err:
        raise ArtifactError(f"{path} is damaged: its header cannot be read") from err
    if found != kind:
        raise ArtifactError(
            f"{path} holds '{found}', where '{kind}' is expected: it is of another kind or version of effc"
        )
    if len(data) != end:
        raise ArtifactError(f"{path} should have {end} bytes, and has {len(data)}: it was cut short or edited")
    view = memoryview(data)
    pieces = [view[body:start], *(view[start + o : start + o + n] for o, n in _extents(header["tensors"], end - start))]
    if _digest(pieces) != data[len(_MAGIC) : body]:
        raise ArtifactError(f"{path} was edited or damaged: its digest is not that of its content")
    tensors = tuple(_tensor(data, start, *entry) for entry in header["tensors"])
    return Archive(header["values"], tensors, _hex(data[:body]))


def _extents(entries: Sequence[Sequence[Any]], total: int) -> list[tuple[int, int]]:
    """Start and bytes of each tensor, padding included."""
    starts = [*(int(entry[3]) for entry in entries), total]
    return [(a, b - a) for a, b in pairwise(starts)]


def _hex(head: bytes) -> str:
    return head[len(_MAGIC) : len(_MAGIC) + _DIGEST_BYTES].hex()


def _digest(pieces: Sequence[bytes | memoryview]) -> bytes:
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        return hashlib.sha256(b"".join(threads.map(lambda piece: hashlib.sha256(piece).digest(), pieces))).digest()


def _bytes_of(tensor: torch.Tensor) -> bytes:
    """The memory between the first and the last element, gaps included."""
    tensor = tensor.detach()
    if tensor.numel() == 0:
        return b""
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((span,), (1,)).resolve_conj().resolve_neg()
    return bytes(flat.view(torch.uint8).numpy())


def _tensor(
    data: mmap.mmap, start: int, dtype: str, sizes: Sequence[int], strides: Sequence[int], at: int
) -> torch.Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    if 0 in sizes:
        return torch.empty_strided(tuple(sizes), tuple(strides), dtype=kind)
    span = 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    return torch.frombuffer(data, dtype=kind, count=span, offset=start + at).as_strided(tuple(sizes), tuple(strides))
